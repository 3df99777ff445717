#!lua flags=allow-oom
-- One step of dividing a queue anew, of those that each shard takes, if it is its turn: see resharding.py. Each can
-- be made again, and is one call, so that a shard is never half opened.
--
-- It sees the keys of this shard alone: on a cluster the layout is on another node. So the shard's own clock says by
-- which division it was closed or opened last, and who slept through a later one changes nothing. No shard is both
-- closed and opened in one division: those of N and of M have other names.
--
-- KEYS  1 {shard}:clock   2 {shard}:applied   3 {shard}   4 {shard}:inflight   5 its {shard}:paused, unless that is the queue's own
--       `close` needs the first one, `let go` two, `open` all
-- ARGV  1 step   2 number of this division   3 shards before   4 for `open`: highest seq given out before, or 0
--       5 which shard it becomes   6 version of the keys   7 shards after   8 '1' for `open` where a reader may wait here
--         for a write of a former shard: on a cluster their cache entries have other names
-- Returns {0} where it is not its turn, else {1}; of `close` {1, highest seq of the shard}.

local step, number, before, since, name, version, after, is_waited_for = unpack(ARGV)
local clock = redis.call('HMGET', KEYS[1], 'seq', 'generation', 'shard', 'division')
local division = tonumber(clock[4] or '0')
local is_first = division < tonumber(number)
local is_ours, is_closed = division == tonumber(number), clock[3] == 'closed'

if step == 'close' then
  if not is_first and not (is_ours and is_closed) then return {0} end
  -- ``into``: for who finds that the layout has forgotten this division.
  if is_first then
    redis.call('HSET', KEYS[1], 'shard', 'closed', 'division', number, 'version', version, 'into', after)
  end
  return {1, clock[1] or '0'}
elseif is_ours and is_closed then
  return {0}
elseif step == 'open' then
  if is_ours then return {1} end -- it may have been let go by now: no second hold
  if not is_first then return {0} end
  local time = redis.call('TIME')
  local last = tonumber(clock[1] or '0')
  -- Where writes of its own wait here, with an older seq, nobody may hear of a later one that it is in Postgres.
  local has_own = last > tonumber(redis.call('GET', KEYS[2]) or '0')
    and redis.call('LLEN', KEYS[3]) + redis.call('LLEN', KEYS[4]) > 0
  local seq = math.max(last, tonumber(since))
  redis.call('HSET', KEYS[1], 'seq', string.format('%.0f', seq),
    'generation', clock[2] or string.format('%.0f', time[1] * 1000000 + time[2]),
    'hold', 'until the writes of ' .. before .. ' former shards are in Postgres',
    'shard', name, 'division', number, 'version', version, 'since', is_waited_for == '1' and not has_own and since or 0)
  if KEYS[5] then redis.call('DEL', KEYS[5]) end -- a pause of when it was a shard before
elseif step == 'let go' then
  if not is_ours then return {0} end
  -- What was accepted before is in Postgres: who waits for such a write hears it from here.
  since = redis.call('HGET', KEYS[1], 'since') or '0'
  if tonumber(redis.call('GET', KEYS[2]) or '0') < tonumber(since) then redis.call('SET', KEYS[2], since) end
  redis.call('HDEL', KEYS[1], 'hold')
end
return {1}
