-- consume: answer several costs at once, in order, each as if it had come alone: all buckets of the path pay it, or none.
-- KEYS[i]  one bucket a level, root first, one hash tag
-- ARGV     limits (packed doubles, of each level: µs to fill, fill rate, µs behind if its key is missing), costs (packed doubles; a negative one only looks)
-- returns  for each cost {wait in µs, binding level from 0 or -1, then µs behind full at each level} (one string of packed doubles)
-- errors   none after the first write

-- core.consume_path, operation for operation, but in one loop and with every number packed: calls and texts would be half
-- of the server's time. So this file does without core.lua, and repeats its constants.
local SECOND, HALF_TICK, FULL, EPOCH = 1000000, 0.5, 0, 1704067200
local call, pack, parse, ceil, text = redis.call, struct.pack, struct.unpack, math.ceil, string.format

local depth, time, stored = #KEYS, call('TIME'), call('MGET', unpack(KEYS))
local now = (time[1] - EPOCH) * SECOND + time[2]
local limits = {parse('<' .. ('d'):rep(3 * depth), ARGV[1])}
local states, taken, changed, reply, length = {}, {}, false, {}, 0

for level = 1, depth do
  local start = limits[3 * level]
  states[level] = FULL
  if stored[level] then
    states[level] = parse('<d', stored[level])
  elseif start > 0 then
    states[level], changed = now + start, true
  end
end

for at = 1, #ARGV[2], 8 do
  local cost = parse('<d', ARGV[2], at)
  local amount, wait, binding = cost < 0 and -cost or cost, 0, -1
  for level = 1, depth do
    local full_at = states[level]
    local behind = (full_at > now and full_at - now or 0) + amount * SECOND / limits[3 * level - 1]
    local late = behind - limits[3 * level - 2] - HALF_TICK
    if late > wait then
      wait, binding = ceil(late), level - 1
    end
    taken[level] = now + behind
  end
  if wait == 0 and cost > 0 then
    states, taken, changed = taken, states, true
  end
  reply[length + 1], reply[length + 2] = wait, binding
  for level = 1, depth do
    reply[length + 2 + level] = states[level] - now
  end
  length = length + 2 + depth
end

if changed then
  for level = 1, depth do
    local full_at, old = states[level], stored[level]
    if full_at > now then
      local value = pack('<d', full_at)
      if old and #old > 8 then
        value = value .. old:sub(9) -- what is out on lease, see lease.lua
      end
      call('PSETEX', KEYS[level], text('%d', ceil((full_at - now) / 1000)), value)
    elseif old then
      call('DEL', KEYS[level])
    end
  end
end
return pack('<' .. ('d'):rep(length), unpack(reply))
