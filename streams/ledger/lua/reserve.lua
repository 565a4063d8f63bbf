-- Candidates in their order, each all or nothing; nobody overtakes at a resource that refused earlier in the call.
-- ARGV   6 shard   7 owner epoch
--        8 count of resources, then each: name, kind (u unknown, k keyed, s slots, r rate), five integers: capacity and zeros, or
--          requests and tokens per minute, burst of requests, burst of tokens, refund
--        count of candidates, their ids, then for each: fleet, count of demands, (number of the resource, amount)* in the order of checking
-- returns {..., grants, repeats, refusals}, the first and the last flat
--   grants   candidate number, runner, partition
--   repeats  {candidate number, runner, partition, granted_ms, fleet, slots, rates} as they are held
--   refusals candidate number, reason, resource, retry_ms, rival

local shard, owner_epoch = integer(), integer()
local resources = {}
for i = 1, integer(RESOURCES_MAX) do
  local name, kind = text(), text()
  resources[i] = {name = name, kind = kind, limit = {integer(), integer(), integer(), integer(), integer()}}
end
local count = integer(CANDIDATES_MAX)
local first = position
position = position + count

local status = gate(shard, owner_epoch)
if status ~= 'ok' then return closed(status) end

-- From here to the writes at the end nothing is changed: a bad argument leaves no trace but the reaping.
reap()
flush()
local standing = redis.call('HMGET', RESERVATIONS, unpack(ARGV, first + 1, first + count))
local reaped = redis.call('ZMSCORE', REAPED, unpack(ARGV, first + 1, first + count))
local buried = redis.call('ZMSCORE', TOMBSTONES, unpack(ARGV, first + 1, first + count))
local opens_ms = opens()
local blocked, waiting, granted, fleets = {}, {}, {}, {}
local grants, repeats, refusals = {}, {}, {}
local writes, leases, holds = {}, {}, {}
local demanded, amounts, demands, best = {}, {}, 0, nil -- of the candidate at hand

local function read_use()
  local places, names = {}, {}
  for i, resource in ipairs(resources) do
    if resource.kind == 's' or resource.kind == 'k' then
      places[#places + 1], names[#names + 1] = i, resource.name
    end
  end
  if #names == 0 then return end
  for i, amount in ipairs(redis.call('HMGET', USED, unpack(names))) do
    resources[places[i]].used = tonumber(amount or 0)
  end
end

-- Redis may compare strings by locale; sorted sets and the twin compare bytes.
local function earlier(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x < y end
  end
  return #a < #b
end

-- The best runners of a fleet by name: as many as candidates are enough, for each grant takes one credit.
local function runners_in(fleet)
  local list, band = {}, band_of(fleet)
  local members = band and redis.call('ZRANGEBYSCORE', IDLE, band, band + CREDIT_MAX, 'LIMIT', 0, count) or {}
  table.sort(members, earlier)
  for i, member in ipairs(members) do
    local name = string.sub(member, #fleet + 2)
    local runner = runner_of(fleet, name)
    list[i] = {name = name, member = member, runner = runner, free = math.max(0, runner[CREDIT] - runner[STANDING])}
  end
  fleets[fleet] = list
  return list
end

local function best_in(fleet)
  local list = fleets[fleet] or runners_in(fleet)
  local found = list[1]
  for i = 2, #list do
    if list[i].free > found.free then found = list[i] end
  end
  return found
end

local function short_of_rate(resource, amount)
  if over_rate(resource.limit[2], amount) then return 'over_capacity', CONFIG_RETRY_MS end
  local bucket = resource.bucket
  if not bucket then
    bucket = adopt(resource.name, resource.limit)
    resource.bucket = bucket
  end
  if bucket[CALLS_FIRST] > now then return 'calls_first', bucket[CALLS_FIRST] - now end
  return shortage(bucket, amount)
end

local function short_of(resource, amount)
  if resource.kind == 'r' then return short_of_rate(resource, amount) end
  if resource.kind == 'u' then return 'unknown_resource', CONFIG_RETRY_MS end
  if amount > resource.limit[1] then return 'over_capacity', CONFIG_RETRY_MS end
  if resource.used + amount <= resource.limit[1] then return nil end
  return resource.kind == 'k' and 'key_busy' or 'slots_full', SLOT_RETRY_MS
end

local function short_of_runner(fleet)
  best = best_in(fleet)
  if not best then return 'no_runner', SLOT_RETRY_MS end
  if best.free == 0 then return 'fleet_full', SLOT_RETRY_MS end
end

-- Refusals that no release ends hold nobody up and wake nobody.
local UNTIMELY = {gone = true, recovering = true, unknown_resource = true, over_capacity = true}

local function refuse(number, reason, resource, retry_ms, rival)
  local size = #refusals
  refusals[size + 1], refusals[size + 2], refusals[size + 3], refusals[size + 4], refusals[size + 5] =
    number, reason, resource, retry_ms, rival
end

-- True if the candidate was refused at this resource.
local function stopped(number, id, name, reason, retry_ms)
  local ahead = blocked[name]
  if ahead then
    refuse(number, ahead[1], name, ahead[2], ahead[3])
    return true
  end
  if not reason then return false end
  refuse(number, reason, name, retry_ms, '')
  if not UNTIMELY[reason] then
    blocked[name] = {reason, retry_ms, id}
    waiting[#waiting + 1] = name
  end
  return true
end

local function decide(number, id, fleet)
  if opens_ms > 0 then
    refuse(number, 'recovering', '', opens_ms - now, '')
    return false
  end
  for i = 1, demands do
    local name = demanded[i].name
    if blocked[name] then return not stopped(number, id, name) end
    local reason, retry_ms = short_of(demanded[i], amounts[i])
    if reason then return not stopped(number, id, name, reason, retry_ms) end
  end
  local name = FLEET_PREFIX .. fleet
  if blocked[name] then return not stopped(number, id, name) end
  return not stopped(number, id, name, short_of_runner(fleet))
end

local function take(number, id, fleet)
  local slots, rates = {}, {}
  for i = 1, demands do
    local resource, amount = demanded[i], amounts[i]
    if resource.kind == 'r' then
      debit(resource.name, resource.bucket, 1, amount)
      rates[#rates + 1], rates[#rates + 2] = resource.name, amount
    else
      resource.used, resource.taken = resource.used + amount, true
      slots[#slots + 1], slots[#slots + 2] = resource.name, amount
    end
  end
  local runner = best.runner
  runner[STANDING], best.free = runner[STANDING] + 1, best.free - 1
  runners_dirty[best.member] = true
  local packed = cmsgpack.pack({shard, fleet, best.name, runner[PARTITION_OF], now, NO, '', 0, slots, rates})
  granted[id] = packed
  local size = #writes
  writes[size + 1], writes[size + 2] = id, packed
  leases[size + 1], leases[size + 2] = now + ttl, id
  holds[size + 1], holds[size + 2] = shard, id
  size = #grants
  grants[size + 1], grants[size + 2], grants[size + 3] = number, best.name, runner[PARTITION_OF]
end

local function stands(id, reservation)
  if granted[id] then return true end
  return reservation[RELEASED] == 0 and reservation[SHARD] == shard and tonumber(redis.call('ZSCORE', LEASES, id)) > now
end

local function repeated(number, id, packed)
  local held = cmsgpack.unpack(packed)
  if stands(id, held) then
    repeats[#repeats + 1] = {number, held[RUNNER], held[PARTITION], held[GRANTED_MS], held[FLEET], held[SLOTS], held[RATES]}
  else
    refuse(number, 'gone', '', 0, '')
  end
end

read_use()
for number = 1, count do
  local id, fleet = ARGV[first + number], text()
  demands = integer(DEMANDS_MAX)
  for i = 1, demands do
    demanded[i], amounts[i] = resources[integer()], integer()
    if not demanded[i] then error('LAXITY argument ' .. position - 1 .. ' names no resource of this call') end
  end
  local packed = granted[id] or standing[number]
  if packed then
    repeated(number, id, packed)
  elseif reaped[number] or buried[number] then
    refuse(number, 'gone', '', 0, '')
  elseif decide(number, id, fleet) then
    take(number, id, fleet)
  end
end

if #writes > 0 then
  redis.call('HSET', RESERVATIONS, unpack(writes))
  redis.call('ZADD', LEASES, unpack(leases))
  redis.call('ZADD', HELD, unpack(holds))
end
local taken = {}
for _, resource in ipairs(resources) do
  if resource.taken and resource.used > 0 then taken[#taken + 1], taken[#taken + 2] = resource.name, resource.used end
end
if #taken > 0 then redis.call('HSET', USED, unpack(taken)) end
if #waiting > 0 then redis.call('SADD', WAITING, unpack(waiting)) end
flush()
return {'ok', epoch(), advance(), now, woken, grants, repeats, refusals}
