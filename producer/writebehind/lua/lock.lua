#!lua
-- Takes a lock if it is free, with a fencing token that is above every one given out before.
--
-- KEYS  1 {q}:lock:NAME   2 {q}:fence
-- ARGV  1 token   2 how long the lock lives, ms
-- Returns the fence; nil if somebody else has the lock.
--
-- The lock is 'token:fence'; 'token:free' for a while after its holder let it go.

local held = redis.call('GET', KEYS[1])
if held then
  local token, fence = string.match(held, '^(.*):(%d+)$')
  if token == ARGV[1] then return fence end -- re-sent: its reply was lost
  if token then return false end
end

local may = redis.acl_check_cmd
local lacks = (not may('GET', KEYS[2]) and 'GET on ' .. KEYS[2])
  or (not may('SET', KEYS[2], '') and 'SET on ' .. KEYS[2])
  or (not may('SET', KEYS[1], '') and 'SET on ' .. KEYS[1])
if lacks then return redis.error_reply('NOPERM the user may not run ' .. lacks) end

-- As the seq of writes: time where Redis has lost the counter, the counter where time stands still or goes back.
local time = redis.call('TIME')
local last = tonumber(redis.call('GET', KEYS[2]) or '0')
local fence = string.format('%.0f', math.max(last + 1, time[1] * 1000000 + time[2]))
redis.call('SET', KEYS[2], fence)
redis.call('SET', KEYS[1], ARGV[1] .. ':' .. fence, 'PX', ARGV[2])
return fence
