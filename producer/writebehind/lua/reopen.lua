#!lua flags=allow-oom
-- All of a user's sessions are revoked: those that come after may be rotated again.
--
-- KEYS  1 {q}:sessions:closing:user
-- ARGV  1 token of whoever revoked them
-- Returns 1 if none could be rotated until now; 0 if its time has run out, or somebody else has begun to revoke.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
