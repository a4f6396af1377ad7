-- refund: return cost tokens to every bucket of a path, up to its capacity and not above what its leases allow.
-- KEYS[i]  one bucket a level, root first, one hash tag
-- ARGV     cost, then of each level: capacity, fill rate
-- returns  tokens left at each level ("%.17g")
-- errors   none after the first write
-- mirrors  bucketflow/algorithm/stored_path.py: StoredBuckets.refund; bucketflow/algorithm/token_lease.py: refund

local cost = tonumber(ARGV[1])
local now, stored, states, reply = now(), redis.call('MGET', unpack(KEYS)), {}, {}
local rates = {}

for level = 1, #KEYS do
  local limit, value = limit_of(ARGV[2 * level], ARGV[2 * level + 1]), stored[level]
  local full_at, floor = FULL, FULL
  if value then -- see consume.lua
    local stored, fill_rate = struct.unpack('<dd', value)
    full_at, limit.fill_rate = at_larger_rate(stored, fill_rate, limit.fill_rate, now)
  end
  if value and #value > 16 then
    floor = struct.unpack('<d', value, 17)
  end
  rates[level] = limit.fill_rate
  states[level] = math.max(floor, refund(limit, full_at, now, cost))
  reply[level] = exact(tokens_at(limit, states[level], now))
end
for level, key in ipairs(KEYS) do
  if states[level] > now then
    local value = struct.pack('<dd', states[level], rates[level]) .. stored[level]:sub(17)
    local step = states[level] - states[level] % EXPIRY_STEP
    redis.call('SET', key, value, 'PX', math.ceil((step + EXPIRY_STEP - now) / 1000))
  else
    redis.call('DEL', key)
  end
end
return reply
