-- refund: give cost tokens back to every bucket of a path, at most up to its capacity.
-- KEYS[i]  one bucket a level, root first, one hash tag
-- ARGV     cost, then of each level: capacity, fill rate
-- returns  tokens left at each level ("%.17g")
-- errors   none after the first write

local cost = tonumber(ARGV[1])
local now, path, states, reply = now(), {}, read(KEYS), {}

for level = 1, #KEYS do
  path[level] = limit_of(ARGV[2 * level], ARGV[2 * level + 1])
  states[level] = refund(path[level], states[level], now, cost)
  reply[level] = exact(tokens_at(path[level], states[level], now))
end
for level, key in ipairs(KEYS) do
  write(key, states[level], now)
end
return reply
