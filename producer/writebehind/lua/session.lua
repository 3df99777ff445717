#!lua
-- Accepts writes to login sessions as enqueue.lua does, but only while the entry of the first is as it was read;
-- and keeps a new session under its user until it is committed, so that whoever revokes all of a user's finds it.
--
-- KEYS  those of enqueue.lua, then  {q}:sessions   {q}:sessions:seq   {q}:sessions:closing:user
-- ARGV  those of enqueue.lua, then  what the first entry must be: 'row', a row of this seq, or '' for anything
--       the new session as user:id, or ''   last seq known committed
-- Returns what enqueue.lua does; {'changed'} where the entry is something else, or may not be rotated now.

local sessions, seqs, closing = unpack(KEYS, #KEYS - 2)
local must_be, new, applied = unpack(ARGV, #ARGV - 2)
local KEYS = {unpack(KEYS, 1, #KEYS - 3)}

local function enqueue()
-- include enqueue
end

-- A call that is sent again has changed the entry itself.
local last = redis.call('HGET', KEYS[3], ARGV[1])
if must_be ~= '' and not (last and string.match(last, '^%d+') == ARGV[2]) then
  if redis.call('TYPE', KEYS[4]).ok ~= 'hash' then return {'changed'} end
  local meta = redis.call('HMGET', KEYS[4], '@seq', '@is')
  if not meta[1] or meta[2] or (must_be ~= 'row' and meta[1] ~= must_be) then return {'changed'} end
  -- While all of the user's are looked for, none takes another id.
  if new ~= '' and redis.call('EXISTS', closing) == 1 then return {'changed'} end
end
if new == '' then return enqueue() end

local may = redis.acl_check_cmd
local lacks = (not may('ZADD', sessions, 0, new) and 'ZADD on ' .. sessions)
  or (not may('ZADD', seqs, 0, new) and 'ZADD on ' .. seqs)
  or (not may('ZREM', sessions, new) and 'ZREM on ' .. sessions)
  or (not may('ZREM', seqs, new) and 'ZREM on ' .. seqs)
if lacks then return redis.error_reply('NOPERM the user may not run ' .. lacks) end

-- What is committed is found in Postgres: these two keys hold no more than what is pending.
local committed = redis.call('ZRANGEBYSCORE', seqs, '-inf', applied, 'LIMIT', 0, 100)
if #committed > 0 then
  redis.call('ZREM', sessions, unpack(committed))
  redis.call('ZREM', seqs, unpack(committed))
end
local answer = enqueue()
local first = not answer.err and tonumber(answer[1])
if first then
  redis.call('ZADD', sessions, 0, new)
  redis.call('ZADD', seqs, string.format('%.0f', first + #KEYS - 4), new) -- it is the last of the writes
end
return answer
