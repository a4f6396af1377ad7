-- refund: give cost tokens back to every bucket of a path, so that none is full before its capacity, or its leases, allow it.
-- KEYS[i]  one bucket a level, root first, one hash tag
-- ARGV     cost, then of each level: capacity, fill rate
-- returns  tokens left at each level ("%.17g")
-- errors   none after the first write

local cost = tonumber(ARGV[1])
local now, stored, states, reply = now(), redis.call('MGET', unpack(KEYS)), {}, {}

for level = 1, #KEYS do
  local limit, value = limit_of(ARGV[2 * level], ARGV[2 * level + 1]), stored[level]
  local full_at, floor = value and struct.unpack('<d', value) or FULL, FULL
  if value and #value > 8 then -- what is out on lease, see lease.py
    floor = struct.unpack('<d', value, 9)
  end
  states[level] = math.max(floor, refund(limit, full_at, now, cost))
  reply[level] = exact(tokens_at(limit, states[level], now))
end
for level, key in ipairs(KEYS) do
  if states[level] > now then
    local value = struct.pack('<d', states[level]) .. stored[level]:sub(9)
    local tenth = states[level] - states[level] % GRACE
    redis.call('SET', key, value, 'PX', math.ceil((tenth + GRACE - now) / 1000))
  else
    redis.call('DEL', key)
  end
end
return reply
