#!lua flags=allow-oom
-- The oldest frozen batches are in Postgres: drops them, and says so to receipts. For the owner only.
--
-- KEYS  1 {q}:inflight   2 {q}:lease   3 {q}:epoch   4 {q}:applied   5 {q}:acked   6 {q}:rejected
--       7.. {q}:processing:<batch> of each; then on a cluster the cache keys
-- ARGV  1 token   2 epoch   3 their ids, comma-separated   4 highest seq in them   5 most rejections to remember
--       6 id of the last batch that the ledger has (the last of these, but while batches of before are recovered)
--       7 time to live of a tombstone, s   8 cache entries to be settled before, see settle_entries.lua
--       then for each rejected write: seq, JSON
-- Returns {'ok'}, {'lost', why} or {'unsettled'}: then nothing is dropped.

-- include lost
-- include settle_entries

local is_lost = lost(KEYS[2], KEYS[3], ARGV[1], ARGV[2])
if is_lost then return {'lost', is_lost} end
local _, n = string.gsub(ARGV[3], '%d+', '') -- so many ids; #KEYS has the cache keys, too
if table.concat(redis.call('LRANGE', KEYS[1], 0, n - 1), ',') ~= ARGV[3] then
  return {'lost', 'the oldest frozen batch is not that of the owner'}
end

local done, why = pcall(settle, ARGV[7], ARGV[8]) -- it may be refused one entry: nothing is dropped by then
if not done or why then return {'unsettled'} end

for i = 9, #ARGV, 2 do redis.call('ZADD', KEYS[6], ARGV[i], ARGV[i + 1]) end
if #ARGV > 8 then redis.call('ZREMRANGEBYRANK', KEYS[6], 0, -(tonumber(ARGV[5]) + 1)) end
if tonumber(ARGV[4]) > tonumber(redis.call('GET', KEYS[4]) or '0') then
  redis.call('SET', KEYS[4], ARGV[4])
end
redis.call('SET', KEYS[5], ARGV[6])
redis.call('LTRIM', KEYS[1], n, -1)
for i = 7, 6 + n do redis.call('UNLINK', KEYS[i]) end
return {'ok'}
