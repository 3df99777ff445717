#!lua flags=allow-oom
-- Installs the epoch that Postgres gave the holder of the lease, and tells what Redis holds.
--
-- KEYS  1 {q}:lease   2 {q}:epoch   3 {q}:clock   4 {q}:applied   5 {q}:acked   6 {q}:inflight
-- ARGV  1 token   2 epoch   3 applied_seq of the ledger   4 generation to begin, or ''
--       5 id to set acked to, or ''   6 version of the keys that we know
-- Returns {'lost'}, {'newer', their version} or {'ok', now µs, seq of the clock, generation, applied, acked, frozen batch ids ...}.

local token = string.match(redis.call('GET', KEYS[1]) or '', '^([^|]*)|')
if token ~= ARGV[1] then return {'lost'} end

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local clock = redis.call('HMGET', KEYS[3], 'seq', 'generation', 'version')
local last, version = tonumber(clock[1] or '0'), tonumber(clock[3] or '0')
if not last or not version then
  return redis.error_reply('ERR seq or version of ' .. KEYS[3] .. ' is no number: no program of ours writes that')
end
if version > tonumber(ARGV[6]) then return {'newer', clock[3]} end
local seq = math.max(last, tonumber(ARGV[3]))
local generation = clock[2]
if ARGV[4] ~= '' then generation = ARGV[4] end
if not generation then generation = string.format('%.0f', now) end
redis.call('HSET', KEYS[3], 'seq', string.format('%.0f', seq), 'generation', generation, 'version', clock[3] or '1')
redis.call('SET', KEYS[2], ARGV[2])
-- Of what a Redis that went back has forgotten, receipts of the new generation know nothing.
if ARGV[4] ~= '' and tonumber(ARGV[3]) > tonumber(redis.call('GET', KEYS[4]) or '0') then
  redis.call('SET', KEYS[4], ARGV[3])
end
if ARGV[5] ~= '' then redis.call('SET', KEYS[5], ARGV[5]) end
-- Announced, and not acknowledged: if Postgres has gone back to before it, it is not so any more.
local committed = redis.call('HGET', KEYS[3], 'committed')
if committed and (tonumber(committed) or math.huge) > tonumber(ARGV[3]) then
  redis.call('HSET', KEYS[3], 'committed', ARGV[3])
end

local answer = {'ok', string.format('%.0f', now), string.format('%.0f', seq), generation,
                redis.call('GET', KEYS[4]) or '0', redis.call('GET', KEYS[5]) or '0'}
for _, batch in ipairs(redis.call('LRANGE', KEYS[6], 0, -1)) do table.insert(answer, batch) end
return answer
