#!lua flags=allow-oom
-- The writes of a batch are durable: gives each cache entry its time to live, if it still shows the write
-- that was flushed. Cannot fail: what is no entry of ours is left alone.
--
-- KEYS  the cache keys
-- ARGV  1 time to live of a tombstone, s, then for each key: seq of its last applied write or '0',
--       time to live, s, seq of its last rejected write or '0'

local function pending(key) return redis.call('PTTL', key) == -1 end

for i, key in ipairs(KEYS) do
  local applied, ttl, rejected = ARGV[i * 3 - 1], ARGV[i * 3], ARGV[i * 3 + 1]
  if redis.call('TYPE', key).ok == 'hash' then
    local meta = redis.call('HMGET', key, '@seq', '@is', '@dirty')
    local seq, kind, dirty = meta[1], meta[2], meta[3]
    if rejected ~= '0' and seq == rejected then
      redis.call('DEL', key) -- it shows what Postgres refused: readers must see the database again
    elseif rejected ~= '0' and (tonumber(seq or '') or 0) > tonumber(rejected) and pending(key) then
      redis.call('HSET', key, '@dirty', '1') -- removed when the newer write is settled
      dirty = '1'
    end
    if applied ~= '0' and seq == applied then
      if dirty or kind == 'marker' then
        redis.call('DEL', key)
      else
        redis.call('EXPIRE', key, kind == 'tombstone' and ARGV[1] or ttl)
      end
    end
  end
end
return #KEYS
