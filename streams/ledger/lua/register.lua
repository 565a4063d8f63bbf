-- A runner announces itself, or says so again. Kept whatever the epoch: a registration says nothing about reservations.
-- ARGV   6 runner   7 fleet   8 partition   9 credit: the most reservations that may stand here   10 how long it holds, in ms
-- returns {...}; status ok | recovering

local name, fleet, partition, most, holds = text(), text(), integer(), integer(CREDIT_MAX), integer()
local runner, member = runner_of(fleet, name)
runner = {partition, most, runner and runner[STANDING] or 0, now + holds}
runners[member], runners_dirty[member] = runner, true
flush()
if runner[CREDIT] > runner[STANDING] then wake({FLEET_PREFIX .. fleet}) end
return {remembers() and 'ok' or 'recovering', epoch(), advance(), now, woken}
