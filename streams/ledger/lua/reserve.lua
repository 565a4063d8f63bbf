-- Candidates in their order, each all or nothing; nobody overtakes at a resource that refused earlier in the call.
-- ARGV   6 shard   7 owner epoch
--        8 count of resources, then each: name, kind (u unknown, k keyed, s slots, r rate), five integers: capacity and zeros, or
--          requests and tokens per minute, burst of requests, burst of tokens, refund
--        count of candidates, then each: id, fleet, count of demands, (number of the resource, amount)* in the order of checking
-- returns {..., grants, refusals}
--   grant {candidate number, runner, partition, granted_ms} and, for a repeat, fleet, slots, rates as they are held
--   refusal {candidate number, reason, resource, retry_ms, rival}

local shard, owner_epoch = integer(), integer()
local resources, candidates, ids = {}, {}, {}
for i = 1, integer(RESOURCES_MAX) do
  local name, kind = text(), text()
  resources[i] = {name = name, kind = kind, limit = {integer(), integer(), integer(), integer(), integer()}}
end
for i = 1, integer(CANDIDATES_MAX) do
  local candidate = {id = text(), fleet = text(), demands = {}}
  for j = 1, integer(DEMANDS_MAX) do
    local resource = resources[integer()]
    if not resource then error('LAXITY argument ' .. position .. ' names no resource of this call') end
    candidate.demands[j] = {resource, integer()}
  end
  candidates[i], ids[i] = candidate, candidate.id
end
local status = gate(shard, owner_epoch)
if status ~= 'ok' then return closed(status) end

reap()
flush_runners()
local standing = redis.call('HMGET', RESERVATIONS, unpack(ids))
local reaped = redis.call('ZMSCORE', REAPED, unpack(ids))
local buried = redis.call('ZMSCORE', TOMBSTONES, unpack(ids))
local opens_ms = opens()
local grants, refusals, blocked, refused_at, granted, fleets = {}, {}, {}, {}, {}, {}
local writes, leases, holds = {}, {}, {}

-- Redis may compare strings by locale; sorted sets and the twin compare bytes.
local function earlier(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x < y end
  end
  return #a < #b
end

-- The best runners of a fleet: one for each candidate is enough, for each grant takes one credit.
local function runners_in(fleet)
  if fleets[fleet] then return fleets[fleet] end
  local list, band = {}, band_of(fleet)
  local members = band and redis.call('ZRANGEBYSCORE', IDLE, band, band + CREDIT_MAX, 'LIMIT', 0, #candidates) or {}
  table.sort(members, earlier)
  for i, member in ipairs(members) do
    local name = string.sub(member, #fleet + 2)
    local runner = runner_of(fleet, name)
    list[i] = {name = name, member = member, runner = runner}
  end
  fleets[fleet] = list
  return list
end

local function best_of(fleet)
  local best, most = nil, -1
  for _, one in ipairs(runners_in(fleet)) do
    local free = math.max(0, one.runner[CREDIT] - one.runner[STANDING])
    if free > most then best, most = one, free end
  end
  return best, most
end

local function short_of_slots(resource, amount)
  local capacity = resource.limit[1]
  if amount > capacity then return {'over_capacity', resource.name, CONFIG_RETRY_MS, ''} end
  if used_of(resource.name) + amount > capacity then
    return {resource.kind == 'k' and 'key_busy' or 'slots_full', resource.name, SLOT_RETRY_MS, ''}
  end
end

local function short_of_rate(resource, amount)
  if over_rate(resource.limit[2], amount) then return {'over_capacity', resource.name, CONFIG_RETRY_MS, ''} end
  resource.bucket = resource.bucket or adopt(resource.name, resource.limit)
  local bucket = resource.bucket
  if bucket[CALLS_FIRST] > now then return {'calls_first', resource.name, bucket[CALLS_FIRST] - now, ''} end
  local reason, wait = shortage(bucket, amount)
  if reason then return {reason, resource.name, wait, ''} end
end

local function short_of(resource, amount)
  if blocked[resource.name] then return blocked[resource.name] end
  if resource.kind == 'u' then return {'unknown_resource', resource.name, CONFIG_RETRY_MS, ''} end
  if resource.kind == 'r' then return short_of_rate(resource, amount) end
  return short_of_slots(resource, amount)
end

local function short_of_runner(fleet)
  local name = FLEET_PREFIX .. fleet
  if blocked[name] then return blocked[name] end
  local best, most = best_of(fleet)
  if not best then return {'no_runner', name, SLOT_RETRY_MS, ''} end
  if most == 0 then return {'fleet_full', name, SLOT_RETRY_MS, ''} end
end

local function first_short(candidate)
  if opens_ms > 0 then return {'recovering', '', opens_ms - now, ''} end
  for _, demand in ipairs(candidate.demands) do
    local short = short_of(demand[1], demand[2])
    if short then return short end
  end
  return short_of_runner(candidate.fleet)
end

local function take(number, candidate)
  local slots, rates = {}, {}
  for _, demand in ipairs(candidate.demands) do
    local resource, amount = demand[1], demand[2]
    local list = resource.kind == 'r' and rates or slots
    list[#list + 1], list[#list + 2] = resource.name, amount
    if resource.kind == 'r' then
      debit(resource.name, resource.bucket, 1, amount)
    else
      use(resource.name, amount)
    end
  end
  local best = best_of(candidate.fleet)
  best.runner[STANDING] = best.runner[STANDING] + 1
  runners_dirty[best.member] = true
  local reservation = {shard, candidate.fleet, best.name, best.runner[PARTITION_OF], now, NO, '', 0, slots, rates}
  granted[candidate.id] = reservation
  writes[#writes + 1], writes[#writes + 2] = candidate.id, cmsgpack.pack(reservation)
  leases[#leases + 1], leases[#leases + 2] = now + ttl, candidate.id
  holds[#holds + 1], holds[#holds + 2] = shard, candidate.id
  grants[#grants + 1] = {number, best.name, best.runner[PARTITION_OF], now}
end

-- Refusals that no release ends hold nobody up and wake nobody.
local UNTIMELY = {gone = true, recovering = true, unknown_resource = true, over_capacity = true}

local function refuse(number, candidate, short)
  refusals[#refusals + 1] = {number, unpack(short)}
  local reason, resource = short[1], short[2]
  if UNTIMELY[reason] or blocked[resource] then return end
  blocked[resource] = {reason, resource, short[3], candidate.id}
  refused_at[#refused_at + 1] = resource
end

local function repeated(number, reservation)
  return {number, reservation[RUNNER], reservation[PARTITION], reservation[GRANTED_MS],
    reservation[FLEET], reservation[SLOTS], reservation[RATES]}
end

local function stands(id, reservation)
  if granted[id] then return true end
  return reservation[RELEASED] == 0 and reservation[SHARD] == shard and tonumber(redis.call('ZSCORE', LEASES, id)) > now
end

for number, candidate in ipairs(candidates) do
  local id = candidate.id
  local reservation = granted[id] or (standing[number] and cmsgpack.unpack(standing[number]))
  if reservation and stands(id, reservation) then
    grants[#grants + 1] = repeated(number, reservation)
  elseif reservation or reaped[number] or buried[number] then
    refuse(number, candidate, {'gone', '', 0, ''})
  else
    local short = first_short(candidate)
    if short then refuse(number, candidate, short) else take(number, candidate) end
  end
end

if #writes > 0 then
  redis.call('HSET', RESERVATIONS, unpack(writes))
  redis.call('ZADD', LEASES, unpack(leases))
  redis.call('ZADD', HELD, unpack(holds))
end
if #refused_at > 0 then redis.call('SADD', WAITING, unpack(refused_at)) end
flush()
return {'ok', epoch(), advance(), now, woken, grants, refusals}
