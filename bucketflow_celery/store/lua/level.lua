-- level: what the operations of this package share; put in front of each, behind gcra.lua of bucketflow.

local RESERVATION_TTL = 2 * SECOND

-- A level is the string of four little-endian doubles: full_at and reserved_until in µs, and the limit both were reckoned under.
-- Under another limit what was taken stays taken, up to an empty bucket, and what was promised stays promised; then the third
-- result is true, and it must be stored: reckoned again and again from what was, a bucket would never fill.
local function rebased_on(limit, packed, now)
  local full_at, reserved_until, capacity, fill_rate = FULL, 0, 0, 0
  if packed and #packed == 32 then -- what somebody else wrote there counts as nothing
    full_at, reserved_until, capacity, fill_rate = struct.unpack('<dddd', packed)
  end
  local is_other = capacity ~= limit.capacity or fill_rate ~= limit.fill_rate
  if is_other then
    local scale = fill_rate / limit.fill_rate
    if full_at > now then
      full_at = now + math.min((full_at - now) * scale, span(limit))
    end
    if reserved_until > now then
      reserved_until = now + (reserved_until - now) * scale
    end
  end
  return full_at, reserved_until, (is_other and capacity > 0) or nil
end

local function pack(limit, full_at, reserved_until)
  return struct.pack('<dddd', full_at, reserved_until, limit.capacity, limit.fill_rate)
end

-- In ms: until the bucket is full, and so long that its line is dissolved.
local function lifetime(full_at, reserved_until, now)
  return math.ceil((math.max(full_at, reserved_until) + RESERVATION_TTL - now) / 1000)
end

-- Give what the whole fleet was told (keys: version, table, paused) its version, and have every worker look at it.
local function announce(keys, channel)
  local text, paused = redis.call('GET', keys[2]) or '', redis.call('SMEMBERS', keys[3])
  if text == '' and #paused == 0 then
    redis.call('DEL', keys[1])
  else
    table.sort(paused)
    redis.call('SET', keys[1], redis.sha1hex(text .. '\n' .. table.concat(paused, '\n')))
  end
  redis.call('PUBLISH', channel, '')
end
