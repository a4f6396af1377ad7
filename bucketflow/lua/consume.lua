-- consume: answer several costs at once, in order, each as if it had come alone: all buckets of the path pay it, or none.
-- KEYS[i]  one bucket a level, root first, one hash tag
-- ARGV     limits (packed doubles, of each level: µs to fill, fill rate, µs behind if its key is missing), costs (packed doubles; a negative one only looks)
-- returns  for each cost {wait in µs, binding level from 0 or -1, then µs behind full at each level} (one string of packed doubles)
-- errors   none after the first write
-- lease    settles what the caller leased before, then answers, then takes more for the caller to spend by itself
--   ARGV     also most tokens to lease, settled leases (packed doubles, of each: tokens, and of each level: µs at which it began to fade, tokens unspent)
--   returns  before the rest {tokens leased, µs now, then µs at which they begin to fade at each level}

-- core.consume_path and lease.py, operation for operation, but in one loop and with every number packed: calls and
-- texts would be half of the server's time. So this file does without gcra.lua, and repeats its constants.
local SECOND, HALF_TICK, FULL, EPOCH, GRACE = 1000000, 0.5, 0, 1704067200, 100000
local call, pack, parse, text, ceil = redis.call, struct.pack, struct.unpack, string.format, math.ceil

local depth, time, stored = #KEYS, call('TIME'), call('MGET', unpack(KEYS))
local now = (time[1] - EPOCH) * SECOND + time[2]
local limits = {parse('<' .. ('d'):rep(3 * depth), ARGV[1])}
local most, settled = ARGV[3] and tonumber(ARGV[3]), ARGV[4]
-- Made with room for three levels: tables that grow would cost as much as a command.
local states, taken, changed, reply, length = {0, 0, 0}, {0, 0, 0}, false, {0, 0, 0, 0, 0}, 0
-- Of what is out on lease, where anything is: behind the bucket in its value stand two more doubles.
local floors, outs

for level = 1, depth do
  local value, start = stored[level], limits[3 * level]
  states[level] = FULL
  if value then
    states[level] = parse('<d', value)
    if #value > 8 then
      floors, outs = floors or {}, outs or {}
      floors[level], outs[level] = parse('<dd', value, 9)
    end
  elseif start > 0 then
    states[level], changed = now + start, true
  end
end

if most then
  floors, outs = floors or {}, outs or {}
  local size = 8 + 16 * depth
  for level = 1, depth do
    local fill_rate, floor, out = limits[3 * level - 1], floors[level] or FULL, outs[level] or 0
    if floor <= now then
      floor, out = FULL, 0
    end
    for at = 1, #settled, size do
      local tokens = parse('<d', settled, at)
      local decays_from, unspent = parse('<dd', settled, at + 16 * level - 8)
      local ends_at = decays_from + tokens * SECOND / fill_rate
      if out > 0 and ends_at > now then
        if out <= tokens then
          floor, out = FULL, 0
        else
          floor, out = ends_at == floor and decays_from or floor, out - tokens
        end
        states[level] = math.max(now, floor, states[level] - unspent * SECOND / fill_rate)
      end
    end
    floors[level], outs[level] = floor, out
  end
  length = 2 + depth
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
  if wait > 0 then
    most = most and 0 -- whoever was refused waits for what is left
  elseif cost > 0 then
    states, taken, changed = taken, states, true
  end
  reply[length + 1], reply[length + 2] = wait, binding
  for level = 1, depth do
    reply[length + 2 + level] = states[level] - now
  end
  length = length + 2 + depth
end

if most then
  local tokens = most
  for level = 1, depth do
    local behind = states[level] > now and states[level] - now or 0
    local there = (limits[3 * level - 2] + HALF_TICK - behind) * limits[3 * level - 1] / SECOND
    tokens = math.max(0, math.min(tokens, there - there % 1))
  end
  reply[1], reply[2] = tokens, now
  for level = 1, depth do
    local decays_from = math.max(now, states[level])
    if tokens > 0 then
      states[level] = decays_from + tokens * SECOND / limits[3 * level - 1]
      floors[level], outs[level] = states[level], outs[level] + tokens
    end
    reply[2 + level] = decays_from
  end
  changed = true
end

local packed = pack('<' .. ('d'):rep(length), unpack(reply, 1, length)) -- here, because it fails where there are thousands
if changed then
  for level = 1, depth do
    local full_at = states[level]
    if full_at > now then
      local value = pack('<d', full_at)
      if outs and (outs[level] or 0) > 0 then
        value = value .. pack('<dd', floors[level], outs[level])
      end
      -- See gcra.lua: to set the expiry costs more than to set the value, and where ten tokens a second come most calls need not.
      local before, tenth = stored[level], full_at - full_at % GRACE
      local was = before and #before == #value and parse('<d', before)
      if was and was - was % GRACE == tenth then
        call('SETRANGE', KEYS[level], '0', value)
      else
        call('PSETEX', KEYS[level], text('%d', ceil((tenth + GRACE - now) / 1000)), value)
      end
    elseif stored[level] then
      call('DEL', KEYS[level])
    end
  end
end
return packed
