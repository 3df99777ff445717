#!lua flags=allow-oom
-- One step of dividing a queue anew, of those that change its layout, if it is its turn: see resharding.py. Each
-- can be made again. Those of each shard are in shard.lua: on a cluster they are on other nodes.
--
-- KEYS  1 {q}:layout
-- ARGV  1 step   2 shards before   3 shards after   4 number of this division; 0 for `begin`
--       5 highest seq given out before, or 0
-- Returns {0} where it is not its turn, else {1}; of `begin` {1, number}.

local step, before, after, number, since = unpack(ARGV)
local layout = redis.call('HMGET', KEYS[1], 'shards', 'closing', 'draining', 'number', 'moving')
local shards, closing, draining = layout[1] or '1', layout[2], layout[3]
-- Who slept through another division must not take a later one for its own.
local is_ours = (layout[4] or '0') == number
local is_closing = is_ours and shards == before and closing == after
local is_draining = is_ours and shards == after and draining == before

if step == 'begin' then
  if shards ~= before or draining or layout[5] or (closing and closing ~= after) then return {0} end
  local own = layout[4] or '0'
  if not closing then own = string.format('%.0f', tonumber(own) + 1) end
  redis.call('HSET', KEYS[1], 'shards', before, 'closing', after, 'number', own)
  return {1, own}
elseif step == 'switch' then
  if is_draining then return {1} end
  if not is_closing then return {0} end
  redis.call('HSET', KEYS[1], 'shards', after, 'draining', before, 'since', since)
  redis.call('HDEL', KEYS[1], 'closing')
elseif step == 'end' then
  if not is_draining then return {0} end
  redis.call('HDEL', KEYS[1], 'draining')
end
return {1}
