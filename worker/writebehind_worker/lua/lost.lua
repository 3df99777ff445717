#!lua
-- Why the caller does not own the queue any more, or nothing. `token` and `number` are its own.

local function lost(lease, epoch, token, number)
  local holder = string.match(redis.call('GET', lease) or '', '^([^|]*)|')
  if holder ~= token then return 'another worker holds the lease' end
  if redis.call('GET', epoch) ~= number then return 'the epoch has changed' end
end
