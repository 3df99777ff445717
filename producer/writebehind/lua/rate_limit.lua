#!lua
-- Takes slots of one or more rate limits: of all, or of none.
--
-- KEYS  {q}:rate:WINDOW:NAME of each
-- ARGV  1 id of the call   2.. of each: limit, window in µs, slots
-- Returns {0 or the number of the limit that refuses, slots that remain, µs to wait, server time in µs}; of several
-- limits the one with fewest slots, or with the longest wait.
--
-- Each is a sorted set: slot → when it was taken. What is as old as the window does not count any more.

local call, id, may = redis.call, ARGV[1], redis.acl_check_cmd
local time = call('TIME')
local clock = time[1] * 1000000 + time[2]

local function text(number) return string.format('%.0f', number) end

local function limit_of(i)
  return tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i]), tonumber(ARGV[3 * i + 1])
end

for _, key in ipairs(KEYS) do
  for _, command in ipairs({'ZREMRANGEBYSCORE', 'ZADD', 'PEXPIRE'}) do
    if not may(command, key, '0', '0') then
      return redis.error_reply('NOPERM the user may not run ' .. command .. ' on ' .. key)
    end
  end
  call('ZCARD', key) -- fails here where it is no sorted set
end

local refused, fewest, wait, now = 0, nil, 0, {}
for i, key in ipairs(KEYS) do
  local limit, window, slots = limit_of(i)
  -- A clock that went back stands still for us, unless it went back by more than the window.
  call('ZREMRANGEBYSCORE', key, '(' .. text(clock + window), '+inf')
  local newest = call('ZRANGE', key, -1, -1, 'WITHSCORES')
  now[i] = math.max(clock, tonumber(newest[2] or '0'))
  call('ZREMRANGEBYSCORE', key, '-inf', text(now[i] - window))
  local taken = call('ZCARD', key)
  if call('ZSCORE', key, id .. ':1') then slots = 0 end -- re-sent: its reply was lost
  local over = taken + slots - limit
  if slots > 0 and over > 0 then
    local last = call('ZRANGE', key, over - 1, over - 1, 'WITHSCORES')
    local needed = tonumber(last[2]) + window - clock
    if needed > wait then refused, wait, fewest = i, needed, math.max(limit - taken, 0) end
  elseif refused == 0 then
    fewest = math.max(math.min(fewest or limit, limit - taken - slots), 0)
  end
end
if refused > 0 then return {refused, fewest, wait, clock} end

for i, key in ipairs(KEYS) do
  local _, window, slots = limit_of(i)
  if not call('ZSCORE', key, id .. ':1') then
    for slot = 1, slots do call('ZADD', key, text(now[i]), id .. ':' .. slot) end
    call('PEXPIRE', key, text(math.ceil(window / 500))) -- twice the window
  end
end
return {0, fewest, 0, clock}
