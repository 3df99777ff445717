#!lua flags=allow-oom
-- After Redis went back in time: which items of the queue, oldest first, have been applied before? Looks at a part
-- of it, so that Redis answers others in between and no item has to travel.
--
-- KEYS  1 queue
-- ARGV  1 items to pass over, from the tail   2 items to look at   3 applied_seq of the ledger
--       4 seq of the clock: a higher one is not ours
-- Returns {items looked at, place among them of the last one applied before or 0, 1 if a newer one ends the search,
--          their bytes}.

local start, most, applied, clock = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local items = redis.call('LRANGE', KEYS[1], -(start + most), -(start + 1))
local last, bytes = 0, 0
for i = #items, 1, -1 do
  local item = items[i]
  bytes = bytes + #item
  -- As frozen.py's stamped_seq; most raw items are told by their first bytes.
  if string.sub(item, 1, 7) == '{"seq":' then
    local digits = string.match(item, '^(%d+),"table":', 8)
    local seq = digits and #digits <= 16 and string.find(item, ',"key":"', 1, true) and tonumber(digits)
    if seq and seq <= clock then
      if seq > applied then return {#items - i + 1, last, 1, bytes} end
      last = #items - i + 1
    end
  end
end
return {#items, last, 0, bytes}
