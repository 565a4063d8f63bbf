-- One more provider call of a running task: a request and LLM tokens of one rate resource. A refused call keeps new dispatches
-- off the bucket until it can be asked again.
-- ARGV   6 id   7 runner   8 resource   9 amount   10 requests and 11 tokens per minute   12 burst of requests   13 burst of tokens   14 refund
-- returns {..., granted (0 or 1), retry_ms, reason}

local id, name, resource, amount = text(), text(), text(), integer()
local limit = {integer(), integer(), integer(), integer(), integer(1)}

local function refuse(number, reason, retry) return {'ok', epoch(), number, now, woken, 0, retry, reason} end

if not remembers() then return refuse(sequence(), 'recovering', SLOT_RETRY_MS) end
local number, opens_ms = advance(), opens()
if opens_ms > 0 then return refuse(number, 'recovering', opens_ms - now) end
local reservation = standing_of(id)
if not reservation or reservation[RUNNER] ~= name or reservation[CLAIMED] == NO then return refuse(number, 'gone', 0) end
if reservation[ORDER] == 'cancel' then return refuse(number, 'cancelled', 0) end
if over_rate(limit[2], amount) then return refuse(number, 'over_capacity', CONFIG_RETRY_MS) end

local bucket = adopt(resource, limit)
local reason, wait = shortage(bucket, amount)
if reason then
  bucket[CALLS_FIRST] = now + wait + CALL_GRACE_MS
  flush()
  return refuse(number, reason, wait)
end
debit(resource, bucket, 1, amount)
bucket[CALLS_FIRST] = 0
local rates = reservation[RATES]
local place = place_of(rates, resource)
if place then
  rates[place] = rates[place] + amount
else
  rates[#rates + 1], rates[#rates + 2] = resource, amount
end
write(id, reservation)
flush()
return {'ok', epoch(), number, now, woken, 1, 0, ''}
