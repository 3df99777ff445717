#!lua
-- Lets a lock go, if the token holds it.
--
-- KEYS  1 {q}:lock:NAME
-- ARGV  1 token   2 how long it is remembered who let it go, ms
-- Returns 1; 0 if the lock is another's, or ran out.

local held = redis.call('GET', KEYS[1])
if not held then return 0 end
local token, state = string.match(held, '^(.*):(%w+)$')
if token ~= ARGV[1] then return 0 end
if state ~= 'free' then redis.call('SET', KEYS[1], token .. ':free', 'PX', ARGV[2]) end
return 1
