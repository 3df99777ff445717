#!lua flags=no-writes,allow-oom
-- Which commands may this user not run? None of them is run.
--
-- ARGV  1 a JSON array of commands, each an array of words
-- Returns the places of those that are refused, the first is 1.
local refused = {}
for place, command in ipairs(cjson.decode(ARGV[1])) do
    local is_known, may = pcall(redis.acl_check_cmd, unpack(command)) -- not where the server has it renamed
    if not (is_known and may) then
        refused[#refused + 1] = place
    end
end
return refused
