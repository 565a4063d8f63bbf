-- Shared by all decisions: loaded before each of them, after the constants of limits.py.
--
-- KEYS   the ledger's memory, all under one hash tag (redis_keys.py names them in this order)
-- ARGV   1 now_ms, '' in production: the server's TIME (tests move it by hand)   2 run_id of the server   3 channel of wakes
--        4 lease TTL in ms   5 number of shards; then those of the decision
-- returns {status, epoch, sequence, now_ms, woken names, ...}
--
-- A user's text is only ever a hash field or a member, never part of a key. Numbers are integers below 2^53.

local EPOCH, OWNERS, REPORTS = KEYS[1], KEYS[2], KEYS[3]           -- hashes: key run begun seq | shard -> owner epoch | same
local RESERVATIONS, LEASES, HELD = KEYS[4], KEYS[5], KEYS[6]       -- id -> packed | by expiry | by shard
local REAPED, TOMBSTONES = KEYS[7], KEYS[8]                        -- by shard | by 2 * expiry + how it ended
local USED, BUCKETS = KEYS[9], KEYS[10]                            -- slot name -> held | rate name -> packed
local RUNNERS, ALIVE, IDLE = KEYS[11], KEYS[12], KEYS[13]          -- fleet/runner -> packed | by expiry | by fleet and free credit
local FLEETS, WAITING = KEYS[14], KEYS[15]                         -- name -> number | resources that refused someone

-- Fields of a packed reservation; slots and rates are flat lists of name, amount.
local SHARD, FLEET, RUNNER, PARTITION, GRANTED_MS, CLAIMED, ORDER, RELEASED, SLOTS, RATES = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
local NO, YES, RESTORED = 0, 1, 2                                  -- claimed
local CLOSED, REVOKED = 0, 1                                       -- how a tombstone's reservation ended
-- Fields of a packed runner: PARTITION_OF, CREDIT, STANDING, UNTIL; of a packed bucket: the rest.
local PARTITION_OF, CREDIT, STANDING, UNTIL = 1, 2, 3, 4
local REQUESTS, TOKENS, REFILLED, RPM, TPM, BURST_REQUESTS, BURST_TOKENS, REFUND, CALLS_FIRST = 1, 2, 3, 4, 5, 6, 7, 8, 9

local position = 0

local function text()
  position = position + 1
  local value = ARGV[position]
  if not value then error('LAXITY argument ' .. position .. ' is missing') end
  return value
end

local function integer(limit)
  local value = text()
  local number = string.match(value, '^%d+$') and #value <= 16 and tonumber(value)
  if not number or number > (limit or QUANTITY_MAX) then
    error('LAXITY argument ' .. position .. ' is ' .. string.sub(value, 1, 40) .. ': must be an integer from 0 to ' .. (limit or QUANTITY_MAX))
  end
  return number
end

local function moment()
  if ARGV[1] ~= '' then return integer() end
  position = 1
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local now = moment()
local run_id, channel, ttl, shards = text(), text(), integer(), integer()
local woken = {}

-- The epoch

local epoch_key, epoch_run, begun = unpack(redis.call('HMGET', EPOCH, 'key', 'run', 'begun'))
begun = tonumber(begun or 0)

local function epoch() return epoch_key and (epoch_key .. '/' .. epoch_run) or '' end
local function remembers() return epoch_key and epoch_run == run_id end
local function advance() return epoch_key and redis.call('HINCRBY', EPOCH, 'seq', 1) or 0 end
local function sequence() return tonumber(redis.call('HGET', EPOCH, 'seq') or 0) end

-- 0: all shards have reported, or every lease of before has lapsed; else when the latter is so.
local function opens()
  if now >= begun + ttl or redis.call('HLEN', REPORTS) >= shards then return 0 end
  return begun + ttl
end

local function own(shard, owner_epoch)
  local known = tonumber(redis.call('HGET', OWNERS, shard) or 0)
  if owner_epoch < known then return false end
  if owner_epoch > known then redis.call('HSET', OWNERS, shard, owner_epoch) end
  return true
end

local function gate(shard, owner_epoch)
  if not remembers() then return 'recovering' end
  if not own(shard, owner_epoch) then return 'fenced' end
  local reported = redis.call('HGET', REPORTS, shard)
  return reported and tonumber(reported) == owner_epoch and 'ok' or 'recovering'
end

local function closed(status) return {status, epoch(), sequence(), now, {}} end

-- Counts are read once and written back by flush()

local used, used_dirty, buckets, buckets_dirty, runners, runners_dirty = {}, {}, {}, {}, {}, {}

local function used_of(name)
  if not used[name] then used[name] = tonumber(redis.call('HGET', USED, name) or 0) end
  return used[name]
end

local function use(name, amount)
  used[name] = math.max(0, used_of(name) + amount)
  used_dirty[name] = true
end

local function bucket_of(name)
  if buckets[name] == nil then
    local packed = redis.call('HGET', BUCKETS, name)
    buckets[name] = packed and cmsgpack.unpack(packed) or false
  end
  return buckets[name]
end

local function runner_of(fleet, name)
  local member = fleet .. '/' .. name
  if runners[member] == nil then
    local packed = redis.call('HGET', RUNNERS, member)
    runners[member] = packed and cmsgpack.unpack(packed) or false
  end
  return runners[member], member
end

-- Each fleet has a band of scores; in it the runner with most free credit comes first.
local function band_of(fleet, create)
  local number = redis.call('HGET', FLEETS, fleet)
  if not number and create then
    number = redis.call('HLEN', FLEETS) + 1
    redis.call('HSET', FLEETS, fleet, number)
  end
  return number and number * (CREDIT_MAX + 1)
end

local function write_runner(member, runner)
  local fleet = string.match(member, '^([^/]*)/')
  if runner[STANDING] == 0 and runner[UNTIL] == 0 then
    redis.call('HDEL', RUNNERS, member)
  else
    redis.call('HSET', RUNNERS, member, cmsgpack.pack(runner))
  end
  if runner[UNTIL] > 0 then redis.call('ZADD', ALIVE, runner[UNTIL], member) else redis.call('ZREM', ALIVE, member) end
  if runner[UNTIL] > 0 and runner[CREDIT] > 0 then
    local free = math.max(0, runner[CREDIT] - runner[STANDING])
    redis.call('ZADD', IDLE, band_of(fleet, true) + CREDIT_MAX - free, member)
  else
    redis.call('ZREM', IDLE, member)
  end
end

local function flush_runners()
  for member in pairs(runners_dirty) do write_runner(member, runners[member]) end
  runners, runners_dirty = {}, {}
end

local function flush()
  for name in pairs(used_dirty) do
    if used[name] > 0 then redis.call('HSET', USED, name, used[name]) else redis.call('HDEL', USED, name) end
  end
  for name in pairs(buckets_dirty) do redis.call('HSET', BUCKETS, name, cmsgpack.pack(buckets[name])) end
  flush_runners()
end

-- Rate buckets: bucket.py, line for line

local function over_rate(per_minute, tokens) return tokens > (per_minute > 0 and per_minute or RATE_MAX) end

local function refilled(level, rate, burst, passed)
  local full = burst * BUCKET_UNITS
  if rate == 0 then return 0 end
  if level >= full or passed >= math.ceil((full - level) / rate) then return full end
  return level + rate * passed
end

local function refill(name, bucket)
  local passed = math.max(0, now - bucket[REFILLED])
  bucket[REQUESTS] = refilled(bucket[REQUESTS], bucket[RPM], bucket[BURST_REQUESTS], passed)
  bucket[TOKENS] = refilled(bucket[TOKENS], bucket[TPM], bucket[BURST_TOKENS], passed)
  bucket[REFILLED] = now
  buckets_dirty[name] = true
end

-- limit = {rpm, tpm, burst of requests, burst of tokens, refund}
local function adopt(name, limit)
  local bucket = bucket_of(name)
  if not bucket then
    bucket = {0, 0, begun, limit[1], limit[2], limit[3], limit[4], limit[5], 0}
    buckets[name] = bucket
  end
  refill(name, bucket)
  local same = true
  for i = 1, 5 do
    same = same and bucket[RPM + i - 1] == limit[i]
    bucket[RPM + i - 1] = limit[i]
  end
  if not same then refill(name, bucket) end
  return bucket
end

local function wait_of(level, amount, rate, burst)
  local needed = math.min(amount, burst) * BUCKET_UNITS
  if rate == 0 or level >= needed then return 0 end
  return math.ceil((needed - level) / rate)
end

local function shortage(bucket, tokens)
  local wait = wait_of(bucket[REQUESTS], 1, bucket[RPM], bucket[BURST_REQUESTS])
  if wait > 0 then return 'rate_requests', wait end
  wait = wait_of(bucket[TOKENS], tokens, bucket[TPM], bucket[BURST_TOKENS])
  if wait > 0 then return 'rate_tokens', wait end
end

local function debited(level, amount, rate)
  if rate == 0 then return 0 end
  local debt_max = rate * DEBT_MINUTES_MAX
  return math.max(-debt_max * BUCKET_UNITS, level - math.min(amount, debt_max) * BUCKET_UNITS)
end

local function debit(name, bucket, requests, tokens)
  bucket[REQUESTS] = debited(bucket[REQUESTS], requests, bucket[RPM])
  bucket[TOKENS] = debited(bucket[TOKENS], tokens, bucket[TPM])
  buckets_dirty[name] = true
end

local function credited(level, amount, rate, burst)
  if rate == 0 then return 0 end
  return math.min(burst * BUCKET_UNITS, level + math.min(amount, rate) * BUCKET_UNITS)
end

local function credit(name, bucket, requests, tokens)
  bucket[REQUESTS] = credited(bucket[REQUESTS], requests, bucket[RPM], bucket[BURST_REQUESTS])
  bucket[TOKENS] = credited(bucket[TOKENS], tokens, bucket[TPM], bucket[BURST_TOKENS])
  buckets_dirty[name] = true
end

-- Reservations: books.py

local function wake(name)
  if redis.call('SREM', WAITING, name) == 1 then
    woken[#woken + 1] = name
    redis.call('PUBLISH', channel, name)
  end
end

local function reservation_of(id)
  local packed = redis.call('HGET', RESERVATIONS, id)
  return packed and cmsgpack.unpack(packed)
end

local function of_shard(id, shard)
  local reservation = reservation_of(id)
  return reservation and reservation[SHARD] == shard and reservation
end

-- Neither released nor lapsed.
local function standing_of(id)
  local reservation = reservation_of(id)
  if not reservation or reservation[RELEASED] == 1 then return nil end
  local expires = tonumber(redis.call('ZSCORE', LEASES, id))
  if expires <= now then return nil end
  return reservation, expires
end

local function write(id, reservation) redis.call('HSET', RESERVATIONS, id, cmsgpack.pack(reservation)) end

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

local function place_of(list, name)
  for i = 1, #list, 2 do
    if list[i] == name then return i + 1 end
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
  for i = 1, #freed do wake(freed[i]) end
end

local function pairs_of(count_max, amount_max)
  local list = {}
  for _ = 1, integer(count_max) do
    list[#list + 1] = text()
    list[#list + 1] = integer(amount_max)
  end
  return list
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
  for i = 1, #freed do wake(freed[i]) end
  bury(id, REVOKED)
  return 'revoked'
end
