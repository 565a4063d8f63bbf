-- The base of every decision: arguments, time, the epoch, reservations. Loaded after the constants of limits.py.
--
-- KEYS   the ledger's memory, all under one hash tag (scripts.py names them in this order)
-- ARGV   1 now_ms, '' in production: the server's TIME (tests move it by hand)   2 run_id of the server   3 channel of wakes
--        4 lease TTL in ms   5 number of shards; then those of the decision
-- returns {status, epoch, sequence, now_ms, woken names, ...}; sequence orders all decisions of an epoch, those too that refuse
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
  local number = string.find(value, '^%d+$') and #value <= 16 and tonumber(value)
  if not number or number > (limit or QUANTITY_MAX) then
    error('LAXITY argument ' .. position .. ' must be an integer from 0 to ' .. (limit or QUANTITY_MAX)) -- and no caller's text in it
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

-- Nothing but an owner may have changed; where the epoch stands that has its place in the order too.
local function closed(status) return {status, epoch(), remembers() and advance() or sequence(), now, {}} end

-- Reservations

local function wake(names)
  local told = {}
  for i = 1, #names do
    local name = names[i]
    if not told[name] and redis.call('SREM', WAITING, name) == 1 then
      woken[#woken + 1] = name
      redis.call('PUBLISH', channel, name)
    end
    told[name] = true
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

local function place_of(list, name)
  for i = 1, #list, 2 do
    if list[i] == name then return i + 1 end
  end
end

local function pairs_of(count_max, amount_max)
  local list = {}
  for _ = 1, integer(count_max) do
    list[#list + 1] = text()
    list[#list + 1] = integer(amount_max)
  end
  return list
end
