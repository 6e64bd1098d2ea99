-- Drops what has expired from the index of a table, a bounded number of entries at once.
--
-- KEYS: the index.  ARGV: unix milliseconds; the most entries.

local gone = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, tonumber(ARGV[2]))
if #gone > 0 then
    redis.call('ZREM', KEYS[1], unpack(gone))
end
return #gone
