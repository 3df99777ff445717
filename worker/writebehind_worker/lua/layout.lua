#!lua flags=allow-oom
-- One step of dividing a queue anew, if it is this one's turn: see resharding.py. Each can be made again.
--
-- KEYS  1 {q}:layout   2 for the steps with a shard: its clock   3 for `open`: its {q}:paused, unless it is the
--       queue's own; for `let go`: its {q}:applied
-- ARGV  1 step   2 shards before   3 shards after   4 number of this division; 0 for `begin`
--       5 highest seq given out before, or 0   6 which shard it becomes   7 version of the keys
-- Returns {0} where it is not its turn, else {1}; of `begin` {1, number}, of `close` {1, highest seq of the shard}.

local step, before, after, number, since, name, version = unpack(ARGV)
local layout = redis.call('HMGET', KEYS[1], 'shards', 'closing', 'draining', 'number')
local shards, closing, draining = layout[1] or '1', layout[2], layout[3]
-- Who slept through another division must not take a later one for its own.
local is_ours = (layout[4] or '0') == number
local is_closing = is_ours and shards == before and closing == after
local is_draining = is_ours and shards == after and draining == before

if step == 'begin' then
  if shards ~= before or draining or (closing and closing ~= after) then return {0} end
  local own = layout[4] or '0'
  if not closing then own = string.format('%.0f', tonumber(own) + 1) end
  redis.call('HSET', KEYS[1], 'shards', before, 'closing', after, 'number', own)
  return {1, own}
elseif step == 'close' then
  if not is_closing then return {0} end
  redis.call('HSET', KEYS[2], 'shard', 'closed', 'version', version)
  return {1, redis.call('HGET', KEYS[2], 'seq') or '0'}
elseif step == 'open' then
  if not is_closing then return {0} end
  local time = redis.call('TIME')
  local clock = redis.call('HMGET', KEYS[2], 'seq', 'generation')
  local seq = math.max(tonumber(clock[1] or '0'), tonumber(since))
  redis.call('HSET', KEYS[2], 'seq', string.format('%.0f', seq),
    'generation', clock[2] or string.format('%.0f', time[1] * 1000000 + time[2]),
    'hold', 'until the writes of ' .. before .. ' former shards are in Postgres', 'shard', name, 'version', version)
  if KEYS[3] then redis.call('DEL', KEYS[3]) end -- a pause of when it was a shard before
elseif step == 'switch' then
  if is_draining then return {1} end
  if not is_closing then return {0} end
  redis.call('HSET', KEYS[1], 'shards', after, 'draining', before, 'since', since)
  redis.call('HDEL', KEYS[1], 'closing')
elseif step == 'let go' then
  if not is_draining then return {0} end
  -- What was accepted before is in Postgres: who waits for such a write hears it from here.
  if tonumber(redis.call('GET', KEYS[3]) or '0') < tonumber(since) then redis.call('SET', KEYS[3], since) end
  redis.call('HDEL', KEYS[2], 'hold')
elseif step == 'end' then
  if not is_draining then return {0} end
  redis.call('HDEL', KEYS[1], 'draining')
end
return {1}
