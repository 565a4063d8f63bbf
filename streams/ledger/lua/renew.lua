-- Extend claimed leases of one runner; what has lapsed stays lapsed. The answer carries orders.
-- ARGV   6 runner   7 count, then ids
-- returns {..., verdicts}: ok | cancel | yield | revoked | recovering, in the order of the ids

local name, count = text(), integer(IDS_MAX)
local verdicts = {}
if not remembers() then
  for i = 1, count do verdicts[i] = 'recovering' end
  return {'recovering', epoch(), sequence(), now, woken, verdicts}
end

local absent = opens() > 0 and 'recovering' or 'revoked'
local function renew(id)
  local reservation = standing_of(id)
  if not reservation then return absent end
  if reservation[RUNNER] ~= name or reservation[CLAIMED] == NO then return 'revoked' end
  if reservation[CLAIMED] ~= YES then
    reservation[CLAIMED] = YES
    write(id, reservation)
  end
  redis.call('ZADD', LEASES, 'XX', now + ttl, id)
  return reservation[ORDER] == '' and 'ok' or reservation[ORDER]
end

for i = 1, count do verdicts[i] = renew(text()) end
return {'ok', epoch(), advance(), now, woken, verdicts}
