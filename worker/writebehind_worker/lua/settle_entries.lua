#!lua
-- Gives each cache entry its time to live, if it still shows the write that was flushed. What is no entry of
-- ours is left alone. `packed` is a MessagePack array of two (as KEYS they would cost Redis an eighth of its
-- time for settling more, and the worker half):
--   of entries whose last applied write is a put, none rejected: cache key, its seq, time to live, s, ...
--   of others: cache key, seq of its last applied write or '0', time to live, seq of its last rejected write or 0, ...
-- `tombstone_ttl` is in seconds. Returns why it could not, or nothing.

local function pending(key) return redis.call('PTTL', key) == -1 end

local function settle(tombstone_ttl, packed)
  local call, try = redis.call, redis.pcall
  local puts, others = unpack(cmsgpack.unpack(packed))

  -- A put has replaced the entry: that is a row, and clean. One field tells, for four fifths of what three cost,
  -- and three quarters with 40 columns, among which fields that are not there are searched for.
  -- A user that was set up for an earlier version may lack HGET; each refusal would be in the ACL log.
  local may_hget = #puts > 0 and redis.acl_check_cmd('HGET', puts[1], '')
  for i = 1, #puts, 3 do
    local key, applied, ttl = puts[i], puts[i + 1], puts[i + 2]
    local seq = not may_hget or try('HGET', key, '@seq')
    if seq == applied then
      call('EXPIRE', key, ttl)
    elseif seq and (type(seq) ~= 'string' or (tonumber(seq) or math.huge) < tonumber(applied)) then
      for _, value in ipairs({key, applied, ttl, 0}) do others[#others + 1] = value end
    end
  end

  for i = 1, #others, 4 do
    local key, applied, ttl, rejected = others[i], others[i + 1], others[i + 2], others[i + 3]
    local meta = try('HMGET', key, '@seq', '@is', '@dirty')
    if not meta.err then
      local seq, kind, dirty = meta[1], meta[2], meta[3]
      if rejected ~= 0 and seq == rejected then
        call('DEL', key) -- it shows what Postgres refused: readers must see the database again
      elseif rejected ~= 0 and (tonumber(seq or '') or 0) > tonumber(rejected) and pending(key) then
        call('HSET', key, '@dirty', '1') -- removed when the newer write is settled, but for a put
        dirty = '1'
      end
      if applied ~= '0' and seq == applied then
        if dirty or kind == 'marker' then
          call('DEL', key)
        else
          call('EXPIRE', key, kind == 'tombstone' and tombstone_ttl or ttl)
        end
      elseif seq and (tonumber(seq) or math.huge) < math.max(tonumber(applied), tonumber(rejected)) and pending(key) then
        -- Only where a seq was forged: nobody would settle it any more, as what is flushed goes up.
        call('EXPIRE', key, applied ~= '0' and not kind and ttl or tombstone_ttl)
      end
    elseif not string.find(meta.err, 'WRONGTYPE', 1, true) and redis.acl_check_cmd('HMGET', key, '') then
      return meta -- a server that demands that all keys are named, say: nothing would ever be settled
    end
  end
end
