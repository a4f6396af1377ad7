-- core: bucketflow/core.py, line by line, and where Redis keeps what it computes. Put in front of every operation.
-- A bucket is the string of one little-endian double, full_at in µs; a missing key is a full bucket.

local SECOND = 1000000
local HALF_TICK = 0.5
local FULL = 0

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

-- out: what is out on lease, see lease.py; nothing if it is left out.
local function refund(limit, full_at, now, cost, out)
  local floor = out and out.tokens > 0 and out.floor or FULL
  return math.max(now, floor, full_at - cost * SECOND / limit.fill_rate)
end

local function tokens_at(limit, full_at, now)
  local behind = full_at > now and full_at - now or 0
  return math.max(0, limit.capacity - behind * limit.fill_rate / SECOND)
end

-- full_at of a stored bucket, and what is out on lease from it.
local function unpack_bucket(packed)
  local full_at, out = packed and struct.unpack('<d', packed) or FULL, {floor = FULL, tokens = 0}
  if packed and #packed == 24 then
    out.floor, out.tokens = struct.unpack('<dd', packed, 9)
  end
  return full_at, out
end

-- Store a bucket for as long as it lacks tokens. PX 0 would be an error, PX rounded down would grant tokens early.
-- The server writes a number with 17 digits, so a whole one needs no format.
local function write(key, full_at, now, out)
  if full_at > now then
    local lease = out.tokens > 0 and struct.pack('<dd', out.floor, out.tokens) or ''
    redis.call('SET', key, struct.pack('<d', full_at) .. lease, 'PX', math.ceil((full_at - now) / 1000))
  else
    redis.call('DEL', key)
  end
end

-- A reply's numbers keep their fraction only as strings, and all their bits only with 17 digits.
local function exact(number)
  return string.format('%.17g', number)
end
