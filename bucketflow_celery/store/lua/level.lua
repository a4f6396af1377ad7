-- level: the stored form of a level. Prelude of all scripts of this package, behind gcra.lua. Constants: store/scripts.py.
-- A level is a string of four little-endian doubles: full_at and reserved_until in µs, and the capacity and fill rate
-- under which both were computed. Its key expires RESERVATION_TTL after both instants.
-- mirrors  bucketflow_celery/scheduling/admit.py: LevelState

-- Return full_at, reserved_until, capacity and fill_rate. A missing key, or a value of another form, is an unused level.
local function level_of(packed)
  if packed and #packed == 32 then
    return struct.unpack('<dddd', packed)
  end
  return FULL, 0, 0, 0
end

-- Return full_at and reserved_until under limit, and whether a stored level was under another limit. If so, the level must
-- be written even by a call that takes nothing. A bucket rescaled from the old value by every call would never fill.
local function rebased_on(limit, packed, now)
  local full_at, reserved_until, capacity, fill_rate = level_of(packed)
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

-- Return the time to live of a level in ms: until it says no more than a missing key.
local function lifetime(full_at, reserved_until, now)
  return math.ceil((math.max(full_at, reserved_until) + RESERVATION_TTL - now) / 1000)
end

-- Set the version of the fleet's limits from what the keys (version, table, paused) hold, and notify every worker.
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
