-- Close reservations: what is still held goes back, LLM tokens are squared, a tombstone makes a repeat do nothing.
-- ARGV   6 shard   7 owner epoch   8 count, then each: id, surely never claimed (0 or 1), count of used, (name, amount)*
-- returns {...}

local shard, owner_epoch, count = integer(), integer(), integer(IDS_MAX)
local settles = {}
for i = 1, count do settles[i] = {text(), integer(1), pairs_of(USED_MAX)} end
local status = gate(shard, owner_epoch)
if status ~= 'ok' then return closed(status) end

local freed = {}
for i = 1, count do
  local id, unclaimed, actual = unpack(settles[i])
  local reservation = of_shard(id, shard)
  if reservation then
    forget(id)
    if reservation[RELEASED] == 0 then free_slots(reservation, freed) end
    if unclaimed == 1 and reservation[CLAIMED] == NO then
      refund_unstarted(reservation, freed)
    else
      settle_rates(reservation, actual, freed)
    end
    bury(id, CLOSED)
  end
end
wake(freed)
flush()
return {'ok', epoch(), advance(), now, woken}
