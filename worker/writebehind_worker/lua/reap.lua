#!lua flags=allow-oom
-- Forgets producer sessions that have been idle for long, if they still are.
--
-- KEYS  1 {q}:producers
-- ARGV  session, value as it was read, ...
-- Returns how many were forgotten.

local forgotten = 0
for i = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then
    forgotten = forgotten + redis.call('HDEL', KEYS[1], ARGV[i])
  end
end
return forgotten
