#!lua flags=allow-oom
-- Takes, renews or releases the queue's lease. The time it runs out is inside the value, in server time:
-- a key with a TTL could be evicted.
--
-- KEYS  1 {q}:lease (token|runs out, ms|owner)
-- ARGV  1 'take', 'renew' or 'release'   2 token   3 time to live, ms   4 owner, for people
-- Returns {1} if it is (take, renew) or was (release) ours, else {0, owner}.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local token, expiry, owner = string.match(redis.call('GET', KEYS[1]) or '', '^([^|]*)|(%d+)|(.*)$')
local ours = token == ARGV[2]

if not ours and (ARGV[1] ~= 'take' or (token and tonumber(expiry) > now)) then
  return {0, owner or ''}
end
if ARGV[1] == 'release' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], string.format('%s|%.0f|%s', ARGV[2], now + ARGV[3], ARGV[4]))
end
return {1}
