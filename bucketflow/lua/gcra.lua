-- gcra: the arithmetic of a token bucket (generic cell rate algorithm) and its form in Redis. Prelude of refund.lua and
-- of all scripts of bucketflow_celery. EPOCH, EXPIRY_STEP, FULL, HALF_TICK and SECOND come from algorithm/mirror.py.
-- A bucket is a string of little-endian doubles, full_at in µs first. A missing key is a full bucket.
-- A key expires at the first multiple of EXPIRY_STEP after its bucket is full. Every write of a bucket sets the expiry,
-- except where the previous value expires at the same instant: consume.lua then keeps it.
-- mirrors  bucketflow/algorithm/gcra.py: wait_for, take, refund, tokens_at, at_larger_rate

local function now()
  local time = redis.call('TIME')
  return (tonumber(time[1]) - EPOCH) * SECOND + tonumber(time[2])
end

local function limit_of(capacity, fill_rate)
  return {capacity = tonumber(capacity), fill_rate = tonumber(fill_rate)}
end

local function span(limit)
  return limit.capacity * SECOND / limit.fill_rate
end

local function wait_for(limit, full_at, now, cost)
  local deficit = full_at > now and full_at - now or 0
  return math.max(0, math.ceil(deficit + cost * SECOND / limit.fill_rate - span(limit) - HALF_TICK))
end

local function take(limit, full_at, now, cost)
  local deficit = full_at > now and full_at - now or 0
  return now + (deficit + cost * SECOND / limit.fill_rate)
end

local function refund(limit, full_at, now, cost)
  return math.max(now, full_at - cost * SECOND / limit.fill_rate)
end

local function tokens_at(limit, full_at, now)
  local deficit = full_at > now and full_at - now or 0
  return math.max(0, limit.capacity - deficit * limit.fill_rate / SECOND)
end

local function at_larger_rate(full_at, stored_rate, fill_rate, now)
  if full_at <= now or stored_rate == fill_rate then
    return full_at, fill_rate
  elseif stored_rate > fill_rate then
    return full_at, stored_rate
  end
  return now + (full_at - now) * stored_rate / fill_rate, fill_rate
end

-- Redis truncates the numbers of a reply to integers, so a fraction travels as a string. A double needs 17 digits.
local function exact(number)
  return string.format('%.17g', number)
end
