-- consume: take cost tokens from every bucket of a path, or from none; or only look.
-- KEYS[i]  one bucket a level, root first, one hash tag
-- ARGV     cost, "take" or "look", limits (packed doubles, of each level: µs to fill, fill rate, µs behind if its key is missing)
-- returns  {wait in µs, binding level from 0 or -1, then µs behind full at each level} (one string of packed doubles)
-- errors   none after the first write

-- core.consume_path, operation for operation, in one loop and with every number packed: calls and texts would be
-- half of the server's time.
local call, pack, parse = redis.call, struct.pack, struct.unpack
local depth, cost = #KEYS, tonumber(ARGV[1])
local taking = ARGV[2] == 'take' and cost > 0
local now, stored = now(), call('MGET', unpack(KEYS))
local limits = {parse('<' .. ('d'):rep(3 * depth), ARGV[3])}
local states, taken, started, wait, binding = {}, {}, false, 0, -1

for level = 1, depth do
  local span, fill_rate, start = limits[3 * level - 2], limits[3 * level - 1], limits[3 * level]
  local full_at = FULL
  if stored[level] then
    full_at = parse('<d', stored[level])
  elseif start > 0 then
    full_at, started = now + start, true
  end
  local behind = (full_at > now and full_at - now or 0) + cost * SECOND / fill_rate
  local level_wait = math.ceil(behind - span - HALF_TICK)
  if level_wait > wait then
    wait, binding = level_wait, level - 1
  end
  states[level], taken[level] = full_at, now + behind
end

local paid = taking and wait == 0
if paid then
  states = taken
end
local reply = {wait, binding}
for level = 1, depth do
  local behind = states[level] - now
  reply[level + 2] = behind
  if paid or started then
    write(KEYS[level], states[level], now)
  end
end
return pack('<' .. ('d'):rep(depth + 2), unpack(reply))
