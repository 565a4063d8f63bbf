-- After the durable outcome: slots and credit go back at once; a stub of one TTL awaits the settlement of the LLM tokens.
-- ARGV   6 id   7 runner   8 count of used, (name, amount)*
-- returns {..., released (0 or 1)}; status ok | recovering

local id, name, actual = text(), text(), pairs_of(USED_MAX)
if not remembers() then return closed('recovering') end
local number = advance()
local reservation = reservation_of(id)
if not reservation or reservation[RELEASED] == 1 or reservation[RUNNER] ~= name or reservation[CLAIMED] == NO then
  return {'ok', epoch(), number, now, woken, 0}
end
local freed = {}
free_slots(reservation, freed)
settle_rates(reservation, actual, freed)
reservation[RELEASED] = 1
write(id, reservation)
redis.call('ZADD', LEASES, 'XX', now + ttl, id)
wake(freed)
flush()
return {'ok', epoch(), number, now, woken, 1}
