#!lua flags=allow-oom
-- Begins or ends an operator's pause. A second one keeps the time of the first, and without a reason that of the first.
--
-- KEYS  1 {q}:paused (ms|reason)
-- ARGV  1 'pause'   2 reason; 'resume'; or 'copy'   2 what a shard shall have of the queue's own pause (ms*|reason), or ''
--         for none   3 what it had as that was read, if it had anything: who read it long ago changes nothing
-- Returns 1 if there was a pause before, else 0.

local before = redis.call('GET', KEYS[1])
if ARGV[1] == 'resume' then return redis.call('DEL', KEYS[1]) end
if ARGV[1] == 'copy' then
  if (before or nil) == ARGV[3] then
    if ARGV[2] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[2]) end
  end
  return before and 1 or 0
end
local time = redis.call('TIME')
local since = string.match(before or '', '^(%d+)|') or string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local reason = ARGV[2] ~= '' and ARGV[2] or string.match(before or '', '|(.*)$') or before or 'no reason given'
redis.call('SET', KEYS[1], since .. '|' .. reason)
return before and 1 or 0
