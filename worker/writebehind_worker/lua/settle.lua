#!lua flags=allow-oom
-- The writes of a batch are durable: their cache entries get their time to live.
--
-- KEYS  on a cluster the cache keys, which only says where the script belongs; else none
-- ARGV  1 time to live of a tombstone, s   2 the entries, see settle_entries.lua

-- include settle_entries

return settle(ARGV[1], ARGV[2])
