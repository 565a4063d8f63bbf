-- A runner takes up a dispatch: from here the lease lives by its renewals.
-- ARGV   6 id   7 runner
-- returns {..., expires_ms, fleet, slots, rates}, the latter if claimed; status claimed | gone | fenced | cancelled | recovering

local id, name = text(), text()
if not remembers() then return closed('recovering') end
local reservation, expires = standing_of(id)
if not reservation then return closed(opens() > 0 and 'recovering' or 'gone') end
if reservation[RUNNER] ~= name then return closed('fenced') end
if reservation[ORDER] == 'cancel' then return closed('cancelled') end
if reservation[CLAIMED] ~= YES then
  reservation[CLAIMED], expires = YES, now + ttl
  write(id, reservation)
  redis.call('ZADD', LEASES, 'XX', expires, id)
end
return {'claimed', epoch(), advance(), now, woken, expires, reservation[FLEET], reservation[SLOTS], reservation[RATES]}
