-- refund: give cost tokens back to every bucket of a path, at most up to its capacity less what is out on lease.
-- KEYS[i]  one bucket a level, root first, one hash tag
-- ARGV     cost, then of each level: capacity, fill rate
-- returns  tokens left at each level ("%.17g")
-- errors   none after the first write

local cost = tonumber(ARGV[1])
local now, stored, states, outs, reply = now(), redis.call('MGET', unpack(KEYS)), {}, {}, {}

for level = 1, #KEYS do
  local limit = limit_of(ARGV[2 * level], ARGV[2 * level + 1])
  local full_at, out = unpack_bucket(stored[level])
  states[level], outs[level] = refund(limit, full_at, now, cost, out), out
  reply[level] = exact(tokens_at(limit, states[level], now))
end
for level, key in ipairs(KEYS) do
  write(key, states[level], now, outs[level])
end
return reply
