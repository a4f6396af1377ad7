-- level: the stored form of a level. Prelude of all scripts of this package, behind gcra.lua. Constants: store/scripts.py.
-- A level is a string of four little-endian doubles: full_at and reserved_until in µs, and the capacity and fill rate
-- under which both were computed; with a debt two more: debt_at in µs and debt_rate. Its key expires RESERVATION_TTL after
-- all instants.
-- mirrors  bucketflow_celery/scheduling/admit.py: LevelState

-- Return full_at, reserved_until, capacity, fill_rate, and the debt if there is one. A missing key, or a value of another
-- form, is an unused level.
local function level_of(packed)
  local size = packed and #packed
  if size == 32 then
    local full_at, reserved_until, capacity, fill_rate = struct.unpack('<dddd', packed)
    return full_at, reserved_until, capacity, fill_rate, nil
  elseif size == 48 then
    local full_at, reserved_until, capacity, fill_rate, debt_at, debt_rate = struct.unpack('<dddddd', packed)
    return full_at, reserved_until, capacity, fill_rate, {at = debt_at, rate = debt_rate}
  end
  return FULL, 0, 0, 0, nil
end

-- Return full_at and reserved_until under limit, whether a stored level was under another limit, and the debt. A level
-- under another limit must be written even by a call that takes nothing: a bucket rescaled from the old value by every call
-- would never fill.
local function rebased_on(limit, packed, now)
  local full_at, reserved_until, capacity, fill_rate, debt = level_of(packed)
  if capacity == limit.capacity and fill_rate == limit.fill_rate then
    return full_at, reserved_until, nil, debt
  end
  local owed = math.max((full_at - now) * fill_rate, debt and (debt.at - now) * debt.rate or 0)
  local rates = {fill_rate, debt and debt.rate or 0, limit.fill_rate}
  debt = nil
  if owed > 0 then
    full_at = now + math.min(owed / limit.fill_rate, span(limit))
    if owed / limit.fill_rate > span(limit) then
      local rate = math.max(unpack(rates))
      debt = {at = now + owed / rate, rate = rate}
    end
  end
  if reserved_until > now then
    reserved_until = now + (reserved_until - now) * (fill_rate / limit.fill_rate)
  end
  return full_at, reserved_until, capacity > 0 or nil, debt
end

-- Return debt after cost more tokens; nil if it was paid.
local function owe(debt, now, cost)
  if debt.at <= now then
    return nil
  end
  return {at = debt.at + cost * SECOND / debt.rate, rate = debt.rate}
end

local function pack(limit, full_at, reserved_until, debt)
  local packed = struct.pack('<dddd', full_at, reserved_until, limit.capacity, limit.fill_rate)
  return debt and packed .. struct.pack('<dd', debt.at, debt.rate) or packed
end

-- Return the time to live of a level in ms: until it says no more than a missing key.
local function lifetime(full_at, reserved_until, now, debt)
  local latest = math.max(full_at, reserved_until, debt and debt.at or 0)
  return math.ceil((latest + RESERVATION_TTL - now) / 1000)
end

local function write_level(key, limit, full_at, reserved_until, now, debt)
  local ttl = math.max(1, lifetime(full_at, reserved_until, now, debt))
  local packed = pack(limit, full_at, reserved_until, debt)
  if redis.pcall('SET', key, packed, 'PX', ttl).err then
    redis.call('DEL', key) -- after a write that needs no memory, a server that is out of memory accepts others
    redis.call('SET', key, packed, 'PX', ttl)
  end
end

-- Set the version of the fleet's limits from what the keys (version, table, paused) hold, and notify every worker. After an @
-- it has the instant of the latest purge: the one of the version before, if no other is given.
local function announce(keys, channel, before, purged_at)
  local text, paused = redis.call('GET', keys[2]) or '', redis.call('SMEMBERS', keys[3])
  local purge = purged_at or (before or redis.call('GET', keys[1]) or ''):match('@(%d+)$')
  if text == '' and #paused == 0 and not purge then
    redis.call('DEL', keys[1])
  else
    table.sort(paused)
    local version = redis.sha1hex(text .. '\n' .. table.concat(paused, '\n'))
    redis.call('SET', keys[1], purge and version .. '@' .. purge or version)
  end
  redis.call('PUBLISH', channel, '')
end
