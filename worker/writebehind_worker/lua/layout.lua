#!lua flags=allow-oom
-- One step of dividing a queue anew, if it is this one's turn: see resharding.py. Each can be made again.
--
-- KEYS  1 {q}:layout   2 for the steps with a shard: its clock   3 for `let go`: its {q}:applied
-- ARGV  1 step   2 shards before   3 shards after   4 highest seq given out before, or 0   5 which shard it becomes
-- Returns {0} where it is not its turn, else {1}; of `close` {1, highest seq that the shard has given out}.

local step, before, after, since, name = unpack(ARGV)
local layout = redis.call('HMGET', KEYS[1], 'shards', 'closing', 'draining')
local shards, closing, draining = layout[1] or '1', layout[2], layout[3]
local is_closing = shards == before and closing == after
local is_draining = shards == after and draining == before

if step == 'begin' then
  if shards ~= before or draining or (closing and closing ~= after) then return {0} end
  redis.call('HSET', KEYS[1], 'shards', before, 'closing', after)
elseif step == 'close' then
  if not is_closing then return {0} end
  redis.call('HSET', KEYS[2], 'shard', 'closed')
  return {1, redis.call('HGET', KEYS[2], 'seq') or '0'}
elseif step == 'open' then
  if not is_closing then return {0} end
  local time = redis.call('TIME')
  local clock = redis.call('HMGET', KEYS[2], 'seq', 'generation')
  local seq = math.max(tonumber(clock[1] or '0'), tonumber(since))
  redis.call('HSET', KEYS[2], 'seq', string.format('%.0f', seq),
    'generation', clock[2] or string.format('%.0f', time[1] * 1000000 + time[2]),
    'hold', 'until the writes of ' .. before .. ' former shards are in Postgres', 'shard', name)
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
