#!lua flags=allow-oom
-- A worker says that it is there, and hears who else is.
--
-- KEYS  1 {q}:fleet   ARGV  1 worker   2 ms that its word holds; 0: it leaves
-- Returns {ms of server time, the workers ...}.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. string.format('%.0f', now))
if ARGV[2] == '0' then
  redis.call('ZREM', KEYS[1], ARGV[1])
else
  redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2]), ARGV[1])
end
return {string.format('%.0f', now), unpack(redis.call('ZRANGE', KEYS[1], 0, -1))}
