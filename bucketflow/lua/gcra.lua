-- gcra: bucketflow/algorithm/gcra.py, line by line, and where Redis keeps what it computes. Put in front of every operation.
-- A bucket is the string of one little-endian double, full_at in µs; a missing key is a full bucket.
-- A key expires on the first full GRACE after its bucket is full. Whoever writes a bucket sees to that; only where the value before
-- was full in the same GRACE, as consume.lua finds it mostly, may the expiry stay as it is.

local SECOND = 1000000
local HALF_TICK = 0.5
local FULL = 0
local GRACE = 100000

-- Instants count from 2024-01-01 UTC: a double of today then keeps 1/64 µs or finer; from 1970 it keeps 1/4 µs.
local EPOCH = 1704067200

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
  local behind = full_at > now and full_at - now or 0
  return math.max(0, math.ceil(behind + cost * SECOND / limit.fill_rate - span(limit) - HALF_TICK))
end

local function take(limit, full_at, now, cost)
  local behind = full_at > now and full_at - now or 0
  return now + (behind + cost * SECOND / limit.fill_rate)
end

local function refund(limit, full_at, now, cost)
  return math.max(now, full_at - cost * SECOND / limit.fill_rate)
end

local function tokens_at(limit, full_at, now)
  local behind = full_at > now and full_at - now or 0
  return math.max(0, limit.capacity - behind * limit.fill_rate / SECOND)
end

-- A reply's numbers keep their fraction only as strings, and all their bits only with 17 digits.
local function exact(number)
  return string.format('%.17g', number)
end
