#!lua
-- Gives a lock more time, if the token holds it.
--
-- KEYS  1 {q}:lock:NAME
-- ARGV  1 token   2 ms   3 'add' to what is left of its time, or 'replace' that
-- Returns 1; 0 if the lock is another's, or ran out.

local held = redis.call('GET', KEYS[1])
if not held or string.match(held, '^(.*):%d+$') ~= ARGV[1] then return 0 end
local ms = tonumber(ARGV[2])
if ARGV[3] == 'add' then ms = ms + redis.call('PTTL', KEYS[1]) end
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', ms))
return 1
