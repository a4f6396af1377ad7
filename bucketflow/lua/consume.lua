-- consume: take cost tokens from every bucket of a path, or from none; or only look.
-- KEYS[i]  one bucket a level, root first, one hash tag
-- ARGV     cost, "take" or "look", then of each level: capacity, fill rate, tokens if its key is missing ("": capacity)
-- returns  {allowed 0|1, binding level from 0 or -1, retry_after µs, then tokens left at each level ("%.17g")}
-- errors   none after the first write

local cost, taking = tonumber(ARGV[1]), ARGV[2] == 'take'
local now, path, states, started = now(), {}, read(KEYS), {}
local wait, binding = 0, -1

for level = 1, #KEYS do
  local limit, initial = limit_of(ARGV[3 * level], ARGV[3 * level + 1]), tonumber(ARGV[3 * level + 2])
  if states[level] == FULL and initial then
    states[level] = take(limit, FULL, now, limit.capacity - initial)
    started[level] = true
  end
  local level_wait = wait_for(limit, states[level], now, cost)
  if level_wait > wait then
    wait, binding = level_wait, level - 1
  end
  path[level] = limit
end

local reply = {wait == 0 and 1 or 0, binding, wait}
local paid = taking and wait == 0 and cost > 0
for level, limit in ipairs(path) do
  if paid then
    states[level] = take(limit, states[level], now, cost)
  end
  if paid or started[level] then
    write(KEYS[level], states[level], now)
  end
  reply[level + 3] = exact(tokens_at(limit, states[level], now))
end
return reply
