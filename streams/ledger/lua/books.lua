-- The moves that decisions share, as in books.py: what ends a reservation, and what then goes back. Needs base.lua, counts.lua.

local function forget(id)
  redis.call('HDEL', RESERVATIONS, id)
  redis.call('ZREM', LEASES, id)
  redis.call('ZREM', HELD, id)
end

local function bury(id, ended) redis.call('ZADD', TOMBSTONES, 2 * (now + ttl) + ended, id) end

local function free_slots(reservation, freed)
  local slots = reservation[SLOTS]
  for i = 1, #slots, 2 do
    use(slots[i], -slots[i + 1])
    freed[#freed + 1] = slots[i]
  end
  if reservation[FLEET] ~= '' then
    local runner, member = runner_of(reservation[FLEET], reservation[RUNNER])
    if runner then
      runner[STANDING] = runner[STANDING] - 1
      runners_dirty[member] = true
    end
    freed[#freed + 1] = FLEET_PREFIX .. reservation[FLEET]
  end
end

local function refund_unstarted(reservation, freed)
  if reservation[CLAIMED] ~= NO then return end
  local rates = reservation[RATES]
  for i = 1, #rates, 2 do
    local bucket = bucket_of(rates[i])
    if bucket then
      refill(rates[i], bucket)
      credit(rates[i], bucket, 1, rates[i + 1])
      freed[#freed + 1] = rates[i]
    end
  end
end

-- Actual LLM tokens: more are debited, fewer given back where the resource says so; once for each difference.
local function settle_rates(reservation, actual, freed)
  local rates = reservation[RATES]
  for i = 1, #actual, 2 do
    local name, tokens = actual[i], actual[i + 1]
    local place, bucket = place_of(rates, name), bucket_of(name)
    if place and bucket and tokens ~= rates[place] then
      refill(name, bucket)
      if tokens > rates[place] then
        debit(name, bucket, 0, tokens - rates[place])
        rates[place] = tokens
      elseif bucket[REFUND] == 1 then
        credit(name, bucket, 0, rates[place] - tokens)
        freed[#freed + 1] = name
        rates[place] = tokens
      end
    end
  end
end

local function drop(id, reservation, freed)
  forget(id)
  if reservation[RELEASED] == 1 then return end
  free_slots(reservation, freed)
  refund_unstarted(reservation, freed)
end

local function reap()
  local lapsed = redis.call('ZRANGEBYSCORE', ALIVE, '-inf', now)
  for i = 1, #lapsed do
    local fleet, name = string.match(lapsed[i], '^([^/]*)/(.*)$')
    local runner, member = runner_of(fleet, name)
    if runner then
      runner[CREDIT], runner[UNTIL] = 0, 0
      runners_dirty[member] = true
    else
      redis.call('ZREM', ALIVE, member)
    end
  end
  local buried = redis.call('ZRANGEBYSCORE', TOMBSTONES, '-inf', 2 * now + 1, 'LIMIT', 0, REAP_MAX)
  if #buried > 0 then redis.call('ZREM', TOMBSTONES, unpack(buried)) end
  local freed, ids = {}, redis.call('ZRANGEBYSCORE', LEASES, '-inf', now, 'LIMIT', 0, REAP_MAX)
  for i = 1, #ids do
    local reservation = reservation_of(ids[i])
    if reservation[RELEASED] == 0 then redis.call('ZADD', REAPED, reservation[SHARD], ids[i]) end
    drop(ids[i], reservation, freed)
  end
  wake(freed)
end

local function revoke(id, shard, order)
  local reservation = of_shard(id, shard)
  if not reservation then
    local buried = redis.call('ZSCORE', TOMBSTONES, id)
    return buried and buried % 2 == REVOKED and 'revoked' or 'gone'
  end
  if reservation[CLAIMED] ~= NO then
    if order ~= '' then
      reservation[ORDER] = order
      write(id, reservation)
    end
    return 'claimed'
  end
  local freed = {}
  drop(id, reservation, freed)
  wake(freed)
  bury(id, REVOKED)
  return 'revoked'
end
