#!lua flags=allow-oom
-- Removes an entry, a fill token too, unless a write to it is pending (a seq, and no TTL yet).
--
-- KEYS  1 cache key
-- Returns 1 if nothing is cached any more, 0 if a write is pending.

if redis.call('TYPE', KEYS[1]).ok == 'hash'
   and redis.call('HEXISTS', KEYS[1], '@seq') == 1 and redis.call('PTTL', KEYS[1]) == -1 then
  return 0
end
redis.call('DEL', KEYS[1])
return 1
