#!lua flags=allow-oom
-- One step of moving a table from a queue or to it, if the queue is still as it was read: see moving.py. Layout and
-- clock change together, so that nobody who knows the former tables is accepted from then on.
--
-- KEYS  1 {q}:layout   2 {q}:clock   3 queue   4 {q}:inflight
-- ARGV  1 moves as read   2 tables as read, or ''   3 moves from now on   4 tables from now on
--       5 the table that is being moved away, or ''   6 '1' where what the queue holds is to be waited for: see mark.lua
-- Returns {0} where it is not so any more, is being divided, or is no whole queue; else {1}. What a move has begun can
-- be ended all the same: the queue may have been divided anew since, for Redis had lost steps of a division.

local layout = redis.call('HMGET', KEYS[1], 'shards', 'closing', 'draining', 'moves', 'tables')
local stamp = redis.call('HGET', KEYS[2], 'shard') or ''
local is_whole = (layout[1] or '1') == '1' and not layout[2] and not layout[3]
local ends = ARGV[5] == '' and ARGV[3] == ARGV[1] -- no stamp changes, and the table waits no more
if not is_whole and not ends then return {0} end
if (layout[4] or '0') ~= ARGV[1] or (layout[5] or '') ~= ARGV[2] then return {0} end
if is_whole and stamp ~= (ARGV[1] == '0' and '' or '/' .. ARGV[1]) then return {0} end

redis.call('HSET', KEYS[1], 'moves', ARGV[3], 'tables', ARGV[4])
if ARGV[5] == '' then redis.call('HDEL', KEYS[1], 'moving') else redis.call('HSET', KEYS[1], 'moving', ARGV[5]) end
if ARGV[3] ~= ARGV[1] then redis.call('HSET', KEYS[2], 'shard', '/' .. ARGV[3]) end
if ARGV[6] == '1' then
  local frozen = redis.call('LINDEX', KEYS[4], -1) or ''
  redis.call('HSET', KEYS[2], 'marked', '/' .. ARGV[3], 'left', redis.call('LLEN', KEYS[3]), 'last', frozen)
end
return {1}
