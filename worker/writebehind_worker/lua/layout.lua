#!lua flags=allow-oom
-- One step of dividing a queue anew, of those that change its layout, if it is its turn: see resharding.py. Each
-- can be made again. Those of each shard are in shard.lua: on a cluster they are on other nodes.
--
-- KEYS  1 {q}:layout
-- ARGV  1 step   2 shards before; of several such numbers, with commas   3 shards after
--       4 number of this division; for `again` that of the layout as it was read; 0 for `begin`
--       5 highest seq given out before, or 0   6 for `again`: highest number that any shard knows
-- Returns {0} where it is not its turn, else {1}; of `begin` and `again` {1, number}.

local step, before, after, number, since, known = unpack(ARGV)
local layout = redis.call('HMGET', KEYS[1], 'shards', 'closing', 'draining', 'number', 'moving')
local shards, closing, draining = layout[1] or '1', layout[2], layout[3]
-- Who slept through another division must not take a later one for its own.
local is_ours = (layout[4] or '0') == number
local is_closing = is_ours and shards == before and closing == after
local is_draining = is_ours and shards == after and draining == before

-- Never one that there was: what a node has forgotten others may still know.
local function next_number(last)
  local time = redis.call('TIME')
  return string.format('%.0f', math.max(tonumber(last) + 1, time[1] * 1000000 + time[2]))
end

if step == 'begin' then
  if shards ~= before or draining or layout[5] or (closing and closing ~= after) then return {0} end
  local own = layout[4] or '0'
  if not closing then own = next_number(own) end
  redis.call('HSET', KEYS[1], 'shards', before, 'closing', after, 'number', own)
  return {1, own}
elseif step == 'again' then
  if (layout[4] or '0') ~= number then return {0} end
  local own = next_number(math.max(tonumber(number), tonumber(known)))
  redis.call('HSET', KEYS[1], 'shards', after, 'draining', before, 'since', since, 'number', own)
  redis.call('HDEL', KEYS[1], 'closing')
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
