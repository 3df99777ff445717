#!lua flags=allow-oom
-- The writes of a batch are durable: gives each cache entry its time to live, if it still shows the write
-- that was flushed. Cannot fail: what is no entry of ours is left alone.
--
-- KEYS  the cache keys
-- ARGV  1 time to live of a tombstone, s   2 for each key "applied:ttl:rejected,": seq of its last applied write
--       or 0, time to live, s, seq of its last rejected write or 0 (one text: thousands of arguments cost more)
-- Returns how many keys there are.

local function pending(key) return redis.call('PTTL', key) == -1 end

local next_settlement = string.gmatch(ARGV[2], '(%d+):(%d+):(%d+),')
for _, key in ipairs(KEYS) do
  local applied, ttl, rejected = next_settlement()
  local meta = redis.pcall('HMGET', key, '@seq', '@is', '@dirty') -- fails where it is no hash
  if not meta.err then
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
    elseif seq and (tonumber(seq) or math.huge) < math.max(tonumber(applied), tonumber(rejected)) and pending(key) then
      -- Only where a seq was forged: nobody would settle it any more, as what is flushed goes up.
      redis.call('EXPIRE', key, applied ~= '0' and not kind and ttl or ARGV[1])
    end
  end
end
return #KEYS
