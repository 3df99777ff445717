#!lua
-- Accepts writes: for each, its cache entry and its queue item, all in one atomic step.
--
-- KEYS  1 queue   2 {q}:clock   3 {q}:producers   4.. the cache key of each write
-- ARGV  1 session   2 counter   3 longest the queue may be, then for each write
--       op, message (a JSON object without seq), number of columns n, then n times column, JSON text
-- Returns {seq of the first write, generation}; {'full', length}; {'stale'}.
--
-- Everything that can fail comes before the first write: a script that fails keeps what it has written.
-- Not allow-oom: at maxmemory it is refused before it starts.

local queue, clock, producers = KEYS[1], KEYS[2], KEYS[3]
local session, counter, limit = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local n = #KEYS - 3

-- A client re-sends a call whose reply was lost: it gets the first answer again.
local last = redis.call('HGET', producers, session)
if last then
  local seen, seq, generation = string.match(last, '^(%d+):(%d+):(%d+)$')
  seen = tonumber(seen)
  if seen == counter then return {seq, generation} end
  if seen > counter then return {'stale'} end
end

local length = redis.call('LLEN', queue)
if length + n > limit then return {'full', length} end

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local state = redis.call('HMGET', clock, 'seq', 'generation')
local generation = state[2] or string.format('%.0f', now)
local first = math.max(tonumber(state[1] or '0') + 1, now)

-- A script that fails half-way keeps what it has written: what the user may not do is found before.
local entry = KEYS[4]
for _, command in ipairs({
  {'LPUSH', queue, ''}, {'HSET', clock, '', ''}, {'HSET', producers, '', ''},
  {'DEL', entry}, {'HSET', entry, '', ''}, {'HMGET', entry, ''}, {'HEXISTS', entry, ''},
  {'HINCRBY', entry, '', 1}, {'PERSIST', entry},
}) do
  if not redis.acl_check_cmd(unpack(command)) then
    return redis.error_reply('NOPERM the user may not run ' .. command[1] .. ' on ' .. command[2])
  end
end

local foreign = {}
for i = 1, n do
  local kind = redis.call('TYPE', KEYS[3 + i]).ok
  foreign[i] = kind ~= 'hash' and kind ~= 'none'
end

local function replace(key, ...)
  redis.call('DEL', key)
  redis.call('HSET', key, ...)
end

-- Whether the entry shows a row: it has a seq and is nothing else.
local function shows_row(key)
  local meta = redis.call('HMGET', key, '@seq', '@is')
  return meta[1] and not meta[2]
end

-- Adds to the cached columns; false where one is missing or no plain 64-bit integer.
local function add(key, fields)
  for i = 1, #fields, 2 do
    if redis.call('HEXISTS', key, fields[i]) == 0 then return false end
    local sum = redis.pcall('HINCRBY', key, fields[i], fields[i + 1])
    if type(sum) == 'table' then return false end
  end
  return true
end

-- The table of states in docs/cache.md.
local function show(key, op, seq, fields)
  if op == 'put' then
    replace(key, '@seq', seq, unpack(fields))
  elseif op == 'delete' then
    replace(key, '@seq', seq, '@is', 'tombstone')
  elseif not shows_row(key) or (op == 'increment' and not add(key, fields)) then
    replace(key, '@seq', seq, '@is', 'marker')
  else
    if op == 'patch' then redis.call('HSET', key, unpack(fields)) end
    redis.call('HSET', key, '@seq', seq)
    redis.call('PERSIST', key) -- pending again: neither time nor volatile-* may remove it
  end
end

local at = 4
for i = 1, n do
  local seq = string.format('%.0f', first + i - 1) -- '..' would drop the last digits
  local op, message, columns = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  local fields = {}
  for j = 1, columns * 2 do fields[j] = ARGV[at + 2 + j] end
  at = at + 3 + columns * 2
  if foreign[i] then redis.call('DEL', KEYS[3 + i]) end
  show(KEYS[3 + i], op, seq, fields)
  redis.call('LPUSH', queue, '{"seq":' .. seq .. ',' .. string.sub(message, 2))
end

local answer = string.format('%.0f', first)
redis.call('HSET', clock, 'seq', string.format('%.0f', first + n - 1), 'generation', generation)
redis.call('HSET', producers, session, ARGV[2] .. ':' .. answer .. ':' .. generation)
return {answer, generation}
