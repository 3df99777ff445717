#!lua flags=allow-oom
-- Freezes a batch: moves items from the tail of the queue into a list of their own, oldest first.
-- From then on nobody cuts or stamps it again; whoever owns the queue next flushes just this batch.
--
-- KEYS  1 queue   2 {q}:inflight   3 {q}:lease   4 {q}:epoch   5 {q}:acked   6 {q}:clock
--       7 {q}:processing:<batch>   8 {q}:paused   9 of a shard: that of the whole queue
-- ARGV  1 token   2 epoch   3 frozen batches as the owner believes, comma-separated
--       4 acked as the owner believes   5 batch id   6 most items   7 most bytes, unpacked: see `weight`
--       8 write delay, µs: fewer items than (6) wait until the oldest is so old
-- Returns {'lost', why}, {'paused', what the key holds}, {'held', why: other shards come first}, {'empty'}, {'wait', µs left} (-1: the oldest does not tell its age)
--         or {'ok', now µs, seq of the clock, items, their bytes}. The items are read by LRANGE, in the same round trip: as a script's
--         answer they cost Redis a third more.

local FIRST, CHUNK, CHUNK_BYTES = 16, 1000, 256 * 1024 -- looked at together: more while they are small; unpack fails near 8,000
local TAIL, MOST_UNPACKED = 160, 64 * 1024 * 1024 -- as received.py and frame.py have them

local find, match, sub = string.find, string.match, string.sub

-- Bytes of an item once its packed columns are unpacked: what the worker will hold of it. What says so in another
-- way, or says what is not so, or too much, it does not unpack.
local function weight(item)
  if find(item, 'unpacked":', -TAIL, true) then
    local unpacked = tonumber(match(sub(item, -TAIL), ',"unpacked":(%d+)[,}]') or 0)
    if unpacked <= MOST_UNPACKED and find(item, '"packed":', 1, true) then return #item + unpacked end
  end
  return #item
end

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local token, expiry = string.match(redis.call('GET', KEYS[3]) or '', '^([^|]*)|(%d+)|')
if token ~= ARGV[1] then return {'lost', 'another worker holds the lease'} end
if tonumber(expiry) * 1000 < now then return {'lost', 'the lease has run out'} end
if redis.call('GET', KEYS[4]) ~= ARGV[2] then return {'lost', 'the epoch has changed'} end
if table.concat(redis.call('LRANGE', KEYS[2], 0, -1), ',') ~= ARGV[3] then
  return {'lost', 'the frozen batches are not those of the owner'}
end
if (redis.call('GET', KEYS[5]) or '0') ~= ARGV[4] then
  return {'lost', 'the last batch acknowledged is not that of the owner'}
end

local paused = redis.call('GET', KEYS[8]) or (KEYS[9] and redis.call('GET', KEYS[9]))
if paused then return {'paused', paused} end
local state = redis.call('HMGET', KEYS[6], 'seq', 'hold', 'left')
if state[2] then return {'held', state[2]} end

local length = redis.call('LLEN', KEYS[1])
if length == 0 then return {'empty'} end
local most, room, delay = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
if delay > 0 and length < most then
  local seq = string.match(redis.call('LINDEX', KEYS[1], -1), '^{"seq":(%d+),')
  if not seq then return {'wait', -1} end
  local left = tonumber(seq) + delay - now
  if left > delay then return {'wait', -1} end -- stamped in the future: a clock has been set back
  if left > 0 then return {'wait', left} end
end

-- A script that fails half-way keeps what it has done: items could be nowhere.
for _, command in ipairs({{'RPUSH', KEYS[7], ''}, {'LTRIM', KEYS[1], 0, 0}, {'RPUSH', KEYS[2], ''}, {'HSET', KEYS[6], '', ''}}) do
  if not redis.acl_check_cmd(unpack(command)) then
    return redis.error_reply('NOPERM the user may not run ' .. command[1] .. ' on ' .. command[2])
  end
end

local clock = state[1] or '0'
local taken, bytes, is_over = 0, 0, false
local chunk = FIRST
most = math.min(most, length)
while taken < most and not is_over do
  local want = math.min(chunk, most - taken)
  local items = redis.call('LRANGE', KEYS[1], -(taken + want), -(taken + 1))
  local size = 0
  for i = want, 1, -1 do
    local weighs = weight(items[i])
    is_over = bytes + weighs > room and taken > 0
    if is_over then break end
    bytes, taken, size = bytes + weighs, taken + 1, size + #items[i]
  end
  if size < CHUNK_BYTES then chunk = math.min(CHUNK, chunk * 4) end
  if size > CHUNK_BYTES * 4 then chunk = math.ceil(chunk / 4) end
end

-- By Redis itself: replicas and the append-only file hear of that, and not of each item once more, as by RPUSH.
local sort = {'SORT', KEYS[1], 'BY', 'nosort', 'LIMIT', 0, taken, 'DESC', 'STORE', KEYS[7]}
-- A user that was set up for an earlier version may lack it; and a server, where it was renamed.
local is_known, may = pcall(redis.acl_check_cmd, unpack(sort))
if is_known and may then
  local copied = redis.call(unpack(sort))
  if copied ~= taken then
    redis.call('UNLINK', KEYS[7])
    return redis.error_reply('SORT has copied ' .. copied .. ' of ' .. taken .. ' items: this is no Redis that the worker knows')
  end
else
  for first = 1, taken, CHUNK do
    local items, those = redis.call('LRANGE', KEYS[1], -math.min(taken, first + CHUNK - 1), -first), {}
    for i = #items, 1, -1 do those[#those + 1] = items[i] end
    redis.call('RPUSH', KEYS[7], unpack(those))
  end
end
redis.call('LTRIM', KEYS[1], 0, -(taken + 1))
redis.call('RPUSH', KEYS[2], ARGV[5])
local left = tonumber(state[3] or '') or 0 -- of what was there as the queue was closed: see mark.lua
if left > 0 then redis.call('HSET', KEYS[6], 'left', math.max(0, left - taken), 'last', ARGV[5]) end
return {'ok', string.format('%.0f', now), clock, taken, bytes}
