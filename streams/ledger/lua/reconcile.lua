-- One page of what a shard's new owner, or any owner after a loss, says it knows: all of its ids in (after, upto], in the order of
-- bytes. The shard's other reservations in that range are dropped, some at a time; then what a loss took is entered again. The first
-- page after a loss begins the new epoch: what another server remembered is forgotten but for owners and registrations, because it
-- may lack the last claims and renewals. The last page makes the shard one that has reported.
-- ARGV   6 shard   7 owner epoch   8 epoch that the state last saw   9 random key of a new epoch
--        10 epoch of the pages before, '' for the first   11 after, '' for the start   12 upto, '' for the end: the last page
--        13 count, then each: id, active (0 or 1), fleet, runner, partition, count of slots, (name, amount)*, count of rates, (name, amount)*
-- returns {..., lapsed ids, dropped, restored, more}; more 1: ask the same again; status ok | fenced | recovering: begin with the first page

local shard, owner_epoch, seen, new_key, begun_in, after, upto = integer(), integer(), text(), text(), text(), text(), text()
local live, known = {}, {}
for i = 1, integer(REPORT_MAX) do
  local one = {id = text(), active = integer(1), fleet = text(), runner = text(), partition = integer()}
  one.slots, one.rates = pairs_of(nil, HELD_MAX), pairs_of(nil, HELD_MAX)
  live[i], known[one.id] = one, true
end
if not own(shard, owner_epoch) then return closed('fenced') end
if begun_in ~= '' and not (remembers() and epoch() == begun_in) then return closed('recovering') end

if not remembers() then
  epoch_key, epoch_run, begun = new_key, run_id, now
  redis.call('HSET', EPOCH, 'key', epoch_key, 'run', epoch_run, 'begun', begun)
  redis.call('UNLINK', REPORTS, RESERVATIONS, LEASES, HELD, REAPED, TOMBSTONES, USED, BUCKETS, WAITING)
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

-- How many members of a key ordered by shard come before the page's range, or up to its end: `id` is put in for a moment.
local function place_in(key, id)
  local owner = tonumber(redis.call('ZSCORE', key, id) or nil)
  redis.call('ZADD', key, shard, id)
  local rank = redis.call('ZRANK', key, id)
  if owner then redis.call('ZADD', key, owner, id) else redis.call('ZREM', key, id) end
  return owner and owner <= shard and rank + 1 or rank
end

local more = 0
local function in_range(key)
  local first = after == '' and redis.call('ZCOUNT', key, '-inf', '(' .. shard) or place_in(key, after)
  local last = upto == '' and redis.call('ZCOUNT', key, '-inf', shard) or place_in(key, upto)
  if last <= first then return {} end
  if last - first > LOOK_MAX then more = 1 end
  return redis.call('ZRANGE', key, first, math.min(last, first + LOOK_MAX) - 1)
end

-- Of what is looked at REPORT_MAX at most are known, so each further look finds others.
local freed, lapsed, dropped, restored = {}, {}, 0, 0
for _, id in ipairs(in_range(HELD)) do
  if not known[id] then
    drop(id, reservation_of(id), freed)
    dropped = dropped + 1
  end
end
for _, id in ipairs(in_range(REAPED)) do
  if not known[id] then redis.call('ZREM', REAPED, id) end
end

-- Once the ledger grants again, what a shard names too late is not entered: its holder has fenced itself, and the room may be taken.
local enters = seen ~= epoch() and opens() > 0
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
  restored = restored + 1
  if one.fleet == '' then return end
  local runner, member = runner_of(one.fleet, one.runner)
  runner = runner or {one.partition, 0, 0, 0}
  runner[STANDING] = runner[STANDING] + 1
  runners[member], runners_dirty[member] = runner, true
end

if more == 0 then
  for _, one in ipairs(live) do
    local reservation = reservation_of(one.id)
    if one.active == 1 and not (reservation and reservation[SHARD] == shard) then
      if not enters or ended(one.id, reservation) then lapsed[#lapsed + 1] = one.id else enter(one) end
    end
  end
  if upto == '' then redis.call('HSET', REPORTS, shard, owner_epoch) end
end
wake(freed)
flush()
return {'ok', epoch(), advance(), now, woken, lapsed, dropped, restored, more}
