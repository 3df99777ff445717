#!lua
-- A reader met a durable row that expires soon: puts its refresh token beside it, unless another's lives.
--
-- KEYS  1 cache key
-- ARGV  1 token   2 how long the token lives, ms   3 how long before the expiry a refresh may begin, ms
-- Returns the row's seq if the token is in place, else an empty text.
--
-- The token: token:seq of the row:its end, ms of the server's clock:time to live that the row has then, ms.

local meta = redis.pcall('HMGET', KEYS[1], '@seq', '@is', '@refresh')
if meta.err or not meta[1] or meta[2] then return '' end -- no row
local left = redis.call('PTTL', KEYS[1])
if left <= 0 or left > tonumber(ARGV[3]) then return '' end -- pending, or fresh again
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local seq, ends = string.match(meta[3] or '', '^%x+:(%d+):(%d+):')
if seq == meta[1] and tonumber(ends) > now then return '' end
redis.call('HSET', KEYS[1], '@refresh',
  string.format('%s:%s:%.0f:%.0f', ARGV[1], meta[1], now + ARGV[2], left - ARGV[2]))
return meta[1]
