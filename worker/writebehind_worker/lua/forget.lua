#!lua flags=allow-oom
-- Removes a cache entry that differs from Postgres, if it still is just what was compared. A write since then
-- would show in `@seq`, a fill in the time at which it expires.
--
-- KEYS  1 cache key
-- ARGV  1 when it expires, Unix time in ms; -1: never   2.. field, value, ...
-- Returns 1 if it was removed, else 0.

if redis.call('PEXPIRETIME', KEYS[1]) ~= tonumber(ARGV[1]) then return 0 end
local entry = redis.pcall('HGETALL', KEYS[1]) -- fails where it is no hash by now
if entry.err or #entry ~= #ARGV - 1 then return 0 end
local compared = {}
for i = 2, #ARGV, 2 do compared[ARGV[i]] = ARGV[i + 1] end
for i = 1, #entry, 2 do
  if compared[entry[i]] ~= entry[i + 1] then return 0 end
end
return redis.call('DEL', KEYS[1])
