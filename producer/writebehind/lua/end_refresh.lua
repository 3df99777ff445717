#!lua
-- A reader has loaded a row anew: it takes effect only while its own refresh token is in place and the entry
-- shows the same write. A put or a delete destroys the token, a patch or an increment changes the seq.
--
-- KEYS  1 cache key
-- ARGV  1 token   2 seq of the row that is refreshed   3 'row', 'negative' or 'abandon'
--       4 time to live, s   5.. column, JSON text, ...
-- Returns 1 if it took effect, else 0.

local meta = redis.pcall('HMGET', KEYS[1], '@seq', '@is', '@refresh')
if meta.err or not meta[1] or meta[2] then return 0 end
local token, seq = string.match(meta[3] or '', '^(%x+):(%d+):')
if token ~= ARGV[1] then return 0 end
if ARGV[3] == 'abandon' then
  redis.call('HSET', KEYS[1], '@refresh', '')
  return 1
end
if seq ~= ARGV[2] or meta[1] ~= seq then return 0 end
-- Without its time to live the row could stay for ever.
if not redis.acl_check_cmd('EXPIRE', KEYS[1], ARGV[4]) then
  return redis.error_reply('NOPERM the user may not run EXPIRE on ' .. KEYS[1])
end
redis.call('DEL', KEYS[1])
if ARGV[3] == 'row' then
  redis.call('HSET', KEYS[1], '@seq', '0', unpack(ARGV, 5))
else
  redis.call('HSET', KEYS[1], '@is', 'negative')
end
redis.call('EXPIRE', KEYS[1], ARGV[4])
return 1
