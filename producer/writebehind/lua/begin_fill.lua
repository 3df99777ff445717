#!lua
-- A reader missed: puts its fill token where nothing is, or returns the entry that is there by now.
--
-- KEYS  1 cache key
-- ARGV  1 token   2 how long the token lives, ms
-- Returns an empty list (the token is in place), the entry as a flat list, or {'@is', 'foreign'}.

local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'hash' then return redis.call('HGETALL', KEYS[1]) end
if kind ~= 'none' then return {'@is', 'foreign'} end
if not redis.acl_check_cmd('PEXPIRE', KEYS[1], ARGV[2]) then -- a token without end would keep readers waiting
  return redis.error_reply('NOPERM the user may not run PEXPIRE on ' .. KEYS[1])
end
redis.call('HSET', KEYS[1], '@is', 'fill', '@token', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {}
