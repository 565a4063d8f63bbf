-- Nothing is sent to this runner any more; what stands there stays until it is released or lapses.
-- ARGV   6 runner   7 fleet
-- returns {...}; status ok | recovering

local name, fleet = text(), text()
local runner, member = runner_of(fleet, name)
if runner then
  runner[CREDIT], runner[UNTIL] = 0, 0
  runners_dirty[member] = true
end
flush()
return {remembers() and 'ok' or 'recovering', epoch(), advance(), now, woken}
