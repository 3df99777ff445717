#!lua
-- Accepts writes: for each, its cache entry and its queue item, all in one atomic step.
--
-- KEYS  1 queue   2 {q}:clock   3 {q}:producers   4.. the cache key of each write
-- ARGV  1 session   2 counter   3 longest the queue may be   4 the ops that occur, as words
--       5 which shard the queue is, or '' for the only one; on a cluster, then '@' and the number of its division   6.. each write as MessagePack strings, one after the other:
--           op, message (a JSON object without seq) but for its brace, column, JSON text, column, ...
--           An empty message: the write is one of a group, whose message came with its first write; it has its seq.
-- Returns {seq of the first write, generation}; {'full', length}; {'stale'};
--         {'moved'}: the queue is not that shard, so that the row's writes go elsewhere.
--
-- Everything that can fail comes before the first write: a script that fails keeps what it has written.
-- Not allow-oom: at maxmemory it is refused before it starts.

local queue, clock, producers, entry = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local session, counter, limit, ops, shard = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5]
local n = #KEYS - 3

-- A client re-sends a call whose reply was lost: it gets the first answer again.
local last = redis.call('HGET', producers, session)
if last then
  local seen, seq, generation = string.match(last, '^(%d+):(%d+):(%d+)$')
  seen = tonumber(seen)
  if seen == counter then
    redis.call('HSET', producers, session, last) -- changes nothing: WAIT looks at the connection's last write
    return {seq, generation}
  end
  if seen > counter then return {'stale'} end
end

local state = redis.call('HMGET', clock, 'seq', 'generation', 'shard')
local is = state[3] or ''
if is ~= shard and is .. '@' .. (redis.call('HGET', clock, 'division') or '0') ~= shard then return {'moved'} end

local length = redis.call('LLEN', queue)
if length + n > limit then return {'full', length} end

-- What the user may not do is found before the first write, HSET to the producers.
local may, changes = redis.acl_check_cmd, string.find(ops, '[pi][an]') -- patch, increment
local lacks = (not may('LPUSH', queue, '') and 'LPUSH on ' .. queue)
  or (not may('HSET', clock, '', '') and 'HSET on ' .. clock)
  or (not may('DEL', entry) and 'DEL on ' .. entry)
  or (not may('HSET', entry, '', '') and 'HSET on ' .. entry)
  or (changes and (
    (not may('HMGET', entry, '') and 'HMGET on ' .. entry)
    or (not may('HEXISTS', entry, '') and 'HEXISTS on ' .. entry)
    or (not may('HINCRBY', entry, '', 1) and 'HINCRBY on ' .. entry)
    or (not may('PERSIST', entry) and 'PERSIST on ' .. entry)))
if lacks then return redis.error_reply('NOPERM the user may not run ' .. lacks) end

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local generation = state[2] or string.format('%.0f', now)
local first = math.max(tonumber(state[1] or '0') + 1, now)
local seq = string.format('%.0f', first) -- '..' would drop the last digits
local answer = seq

-- A patch or an increment of the entry, where it shows a row and the sums are exact; whether it was done.
local function change(key, op, ...)
  local meta = redis.pcall('HMGET', key, '@seq', '@is')
  if meta.err or not meta[1] or meta[2] then return false end -- a row has a seq and is nothing else
  if op == 'patch' then
    redis.call('HSET', key, '@seq', seq, ...)
  else
    local fields = {...}
    for i = 1, #fields, 2 do
      if redis.call('HEXISTS', key, fields[i]) == 0 then return false end
      local sum = redis.pcall('HINCRBY', key, fields[i], fields[i + 1])
      if type(sum) == 'table' then return false end -- no plain 64-bit integers
    end
    redis.call('HSET', key, '@seq', seq)
  end
  redis.call('PERSIST', key) -- pending again: neither time nor volatile-* may remove it
  return true
end

local items, held, count = {}, 0, 0

-- The table of states in docs/cache.md.
local function accept(i, op, message, ...)
  local key = KEYS[3 + i]
  if message ~= '' then
    if count > 0 then seq = string.format('%.0f', first + count) end
    count = count + 1
    held = held + 1
    items[held] = '{"seq":' .. seq .. ',' .. message
  end
  if op == 'put' then
    redis.call('DEL', key)
    redis.call('HSET', key, '@seq', seq, ...)
  elseif op == 'delete' or not change(key, op, ...) then
    redis.call('DEL', key)
    redis.call('HSET', key, '@seq', seq, '@is', op == 'delete' and 'tombstone' or 'marker')
  end
  if held == 100 or i == n and held > 0 then -- one LPUSH for many: a tenth off a large batch
    redis.call('LPUSH', queue, unpack(items, 1, held))
    held = 0
  end
end

redis.call('HSET', producers, session, ARGV[2] .. ':' .. answer .. ':' .. generation)
accept(1, cmsgpack.unpack(ARGV[6]))
for i = 2, n do
  accept(i, cmsgpack.unpack(ARGV[5 + i]))
end
redis.call('HSET', clock, 'seq', seq, 'generation', generation)
return {answer, generation}
