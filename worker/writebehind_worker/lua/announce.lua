#!lua flags=allow-oom
-- Frozen batches are in Postgres: tells receipts, before their many cache entries are settled. For the owner only.
--
-- KEYS  1 {q}:clock   2 {q}:lease   3 {q}:epoch
-- ARGV  1 token   2 epoch   3 highest seq in them
-- Not by {q}:applied, which tells that entries are settled, too.

-- include lost

if lost(KEYS[2], KEYS[3], ARGV[1], ARGV[2]) then return end -- acknowledging tells why
if tonumber(ARGV[3]) > (tonumber(redis.call('HGET', KEYS[1], 'committed') or '') or 0) then
  redis.call('HSET', KEYS[1], 'committed', ARGV[3])
end
