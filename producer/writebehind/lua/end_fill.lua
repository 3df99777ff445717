#!lua
-- A reader has loaded: its row takes effect only while its own token is in place. Every write and every
-- invalidation destroys the token, so a row older than a write never comes into the cache.
--
-- KEYS  1 cache key
-- ARGV  1 token   2 'row', 'negative' or 'abandon'   3 time to live, s   4.. column, JSON text, ...
-- Returns 1 if it took effect, else 0.

if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then return 0 end
if redis.call('HGET', KEYS[1], '@token') ~= ARGV[1] then return 0 end
-- Without its time to live the row could stay for ever.
if not redis.acl_check_cmd('EXPIRE', KEYS[1], ARGV[3]) then
  return redis.error_reply('NOPERM the user may not run EXPIRE on ' .. KEYS[1])
end
redis.call('DEL', KEYS[1])
if ARGV[2] == 'abandon' then return 1 end
if ARGV[2] == 'row' then
  redis.call('HSET', KEYS[1], '@seq', '0', unpack(ARGV, 4))
else
  redis.call('HSET', KEYS[1], '@is', 'negative')
end
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
