#!lua flags=allow-oom
-- Begins or ends an operator's pause. A second one keeps the time of the first, and without a reason that of the first.
--
-- KEYS  1 {q}:paused (ms|reason)
-- ARGV  1 'pause'   2 reason; 'resume'; 'copy', what a shard of the queue has of the queue's own pause (ms*|reason): no
--         pause of its own is lost by it; or 'drop', the copy, as it was read
-- Returns 1 if there was a pause before, else 0.

local before = redis.call('GET', KEYS[1])
if ARGV[1] == 'resume' then return redis.call('DEL', KEYS[1]) end
if ARGV[1] == 'drop' then return before == ARGV[2] and redis.call('DEL', KEYS[1]) or 0 end
if ARGV[1] == 'copy' then
  if not before then redis.call('SET', KEYS[1], ARGV[2]) end
  return before and 1 or 0
end
local time = redis.call('TIME')
local since = string.match(before or '', '^(%d+)|') or string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local reason = ARGV[2] ~= '' and ARGV[2] or string.match(before or '', '|(.*)$') or before or 'no reason given'
redis.call('SET', KEYS[1], since .. '|' .. reason)
return before and 1 or 0
