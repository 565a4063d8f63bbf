-- What is counted: slots, rate buckets, runners' credit. Needs base.lua.

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

local function flush()
  for name in pairs(used_dirty) do
    if used[name] > 0 then redis.call('HSET', USED, name, used[name]) else redis.call('HDEL', USED, name) end
  end
  for name in pairs(buckets_dirty) do redis.call('HSET', BUCKETS, name, cmsgpack.pack(buckets[name])) end
  for member in pairs(runners_dirty) do write_runner(member, runners[member]) end
  used, used_dirty, buckets, buckets_dirty, runners, runners_dirty = {}, {}, {}, {}, {}, {}
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
