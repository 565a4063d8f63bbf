-- Take reservations back, unless they are claimed.
-- ARGV   6 shard   7 owner epoch   8 count, then ids
-- returns {..., verdicts}: revoked | claimed | gone, in the order of the ids

local shard, owner_epoch, count = integer(), integer(), integer(IDS_MAX)
local status = gate(shard, owner_epoch)
if status ~= 'ok' then return closed(status) end

local verdicts = {}
for i = 1, count do verdicts[i] = revoke(text(), shard, '') end
flush()
return {'ok', epoch(), advance(), now, woken, verdicts}
