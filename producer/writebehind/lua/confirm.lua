#!lua flags=allow-oom
-- Whether a call that was accepted is still known here; if so, the same is written once more, so that WAIT and
-- WAITAOF of this connection have something to wait for. A server that does not know it gets nothing.
--
-- KEYS  1 {q}:producers   ARGV  1 session   2 counter

local last = redis.call('HGET', KEYS[1], ARGV[1])
if not last or string.match(last, '^%d+') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], last)
return 1
