#!lua flags=allow-oom
-- Remembers what a queue holds as it is closed: anybody may push to it on, but that need not be waited for.
-- From then on claim.lua counts down what is left of it. It goes first: it is the tail, from where batches are taken.
--
-- KEYS  1 {q}:layout   2 {q}:clock   3 queue   4 {q}:inflight   ARGV  1 number of the division
-- Returns {1}; {0} where it is not its turn. Made again, it changes nothing.

local number, closing, draining = unpack(redis.call('HMGET', KEYS[1], 'number', 'closing', 'draining'))
if number ~= ARGV[1] or not (closing or draining) then return {0} end
if redis.call('HGET', KEYS[2], 'marked') == number then return {1} end
local frozen = redis.call('LINDEX', KEYS[4], -1) or ''
redis.call('HSET', KEYS[2], 'marked', number, 'left', redis.call('LLEN', KEYS[3]), 'last', frozen)
return {1}
