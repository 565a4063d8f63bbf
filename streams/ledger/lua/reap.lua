-- End what has lapsed, whosoever it is, and tell the shard which of its leases did.
-- ARGV   6 shard   7 owner epoch
-- returns {..., ids}: lapsed leases of this shard that it has not acknowledged, REAPED_MAX at most

local shard, owner_epoch = integer(), integer()
local status = gate(shard, owner_epoch)
if status ~= 'ok' then return closed(status) end

reap()
flush()
local ids = redis.call('ZRANGEBYSCORE', REAPED, shard, shard, 'LIMIT', 0, REAPED_MAX)
return {'ok', epoch(), advance(), now, woken, ids}
