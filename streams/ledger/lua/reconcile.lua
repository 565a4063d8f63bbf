-- A shard's new owner, or any owner after a loss, says what it knows: the rest of the shard's reservations is dropped, what a
-- loss took is entered again. The first one after a loss begins the new epoch: what another server remembered is forgotten but
-- for owners and registrations, because it may lack the last claims and renewals.
-- ARGV   6 shard   7 owner epoch   8 epoch that the state last saw   9 random key of a new epoch
--        10 count, then each: id, active (0 or 1), fleet, runner, partition, count of slots, (name, amount)*, count of rates, (name, amount)*
-- returns {..., lapsed ids, dropped, restored}; status ok | fenced

local shard, owner_epoch, seen, new_key = integer(), integer(), text(), text()
local live, known = {}, {}
for i = 1, integer(LIVE_MAX) do
  local one = {id = text(), active = integer(1), fleet = text(), runner = text(), partition = integer()}
  one.slots, one.rates = pairs_of(nil, HELD_MAX), pairs_of(nil, HELD_MAX)
  live[i], known[one.id] = one, true
end
if not own(shard, owner_epoch) then return closed('fenced') end

if not remembers() then
  epoch_key, epoch_run, begun = new_key, run_id, now
  redis.call('HSET', EPOCH, 'key', epoch_key, 'run', epoch_run, 'begun', begun)
  redis.call('UNLINK', REPORTS, RESERVATIONS, LEASES, HELD, REAPED, TOMBSTONES, USED, BUCKETS)
  local registered = redis.call('HGETALL', RUNNERS)
  for i = 1, #registered, 2 do
    local runner = cmsgpack.unpack(registered[i + 1])
    if runner[UNTIL] == 0 then
      redis.call('HDEL', RUNNERS, registered[i])
    else
      runner[STANDING] = 0
      runners[registered[i]], runners_dirty[registered[i]] = runner, true
    end
  end
end

local freed, lapsed, dropped, restored = {}, {}, 0, 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', HELD, shard, shard)) do
  if not known[id] then
    drop(id, reservation_of(id), freed)
    dropped = dropped + 1
  end
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', REAPED, shard, shard)) do
  if not known[id] then redis.call('ZREM', REAPED, id) end
end

local function ended(id, reservation)
  return reservation or redis.call('ZSCORE', REAPED, id) or redis.call('ZSCORE', TOMBSTONES, id)
end

-- Its LLM tokens were debited in the lost epoch; the buckets have started empty since.
local function enter(one)
  local reservation = {shard, one.fleet, one.runner, one.partition, now, RESTORED, '', 0, one.slots, one.rates}
  write(one.id, reservation)
  redis.call('ZADD', LEASES, now + ttl, one.id)
  redis.call('ZADD', HELD, shard, one.id)
  for i = 1, #one.slots, 2 do use(one.slots[i], one.slots[i + 1]) end
  if one.fleet == '' then return end
  local runner, member = runner_of(one.fleet, one.runner)
  runner = runner or {one.partition, 0, 0, 0}
  runner[STANDING] = runner[STANDING] + 1
  runners[member], runners_dirty[member] = runner, true
end

for _, one in ipairs(live) do
  local reservation = reservation_of(one.id)
  if one.active == 1 and not (reservation and reservation[SHARD] == shard) then
    if seen == epoch() or ended(one.id, reservation) then
      lapsed[#lapsed + 1] = one.id
    else
      enter(one)
      restored = restored + 1
    end
  end
end
for i = 1, #freed do wake(freed[i]) end
redis.call('HSET', REPORTS, shard, owner_epoch)
flush()
return {'ok', epoch(), advance(), now, woken, lapsed, dropped, restored}
