-- The shard has committed what it did about these lapsed leases: forget them.
-- ARGV   6 shard   7 owner epoch   8 count, then ids
-- returns {..., }

local shard, owner_epoch, count = integer(), integer(), integer(IDS_MAX)
local status = gate(shard, owner_epoch)
if status ~= 'ok' then return closed(status) end

for _ = 1, count do
  local id = text()
  if tonumber(redis.call('ZSCORE', REAPED, id) or -1) == shard then redis.call('ZREM', REAPED, id) end
end
return {'ok', epoch(), advance(), now, woken}
