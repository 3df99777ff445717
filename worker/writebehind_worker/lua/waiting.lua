#!lua flags=no-writes,allow-oom
-- How many items wait, and since when: the oldest itself may be too long to be sent every second.
--
-- KEYS  {q}:processing:<batch> of each frozen batch, oldest first, then the queue
-- Returns {1 if there is an item else 0, seq of the oldest or '' if it does not tell, length of each list ...}.

local answer = {0, ''}
for i, key in ipairs(KEYS) do
  answer[#answer + 1] = redis.call('LLEN', key)
  if answer[1] == 0 and answer[#answer] > 0 then
    local item = redis.call('LINDEX', key, i == #KEYS and -1 or 0)
    answer[1] = 1
    if string.find(item, ',"key":"', 1, true) then
      answer[2] = string.match(item, '^{"seq":(%d+),"table":') or ''
    end
  end
end
return answer
