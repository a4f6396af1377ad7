-- consume: decide several costs in order, each as if it were alone: every bucket of the path pays it, or none does.
-- KEYS[i]  one bucket a level, root first, one hash tag
-- ARGV     limits (packed doubles, of each level: µs to fill, fill rate, deficit in µs if its key is missing), costs (packed doubles; a negative cost only peeks)
-- returns  for each cost {wait in µs, binding level from 0 or -1, then deficit in µs at each level} (one string of packed doubles)
-- errors   none after the first write
-- mirrors  bucketflow/algorithm/stored_path.py: StoredBuckets.consume; bucketflow/algorithm/gcra.py: consume_path, at_larger_rate; bucketflow/algorithm/token_lease.py: settle, available_to_lease, lease
-- stores   packed doubles: µs at which the bucket is full, fill rate (the largest since it was full); while tokens are leased also floor in µs, tokens
--          outstanding
-- lease    settles the caller's earlier leases, then decides the costs, then leases more tokens to the caller
--   ARGV     also most tokens to lease, settled leases (packed doubles, of each: tokens, and of each level: µs at which it begins to decay, tokens unspent)
--   returns  before the rest {tokens leased, µs now, then µs at which they begin to decay at each level}

-- One loop over packed numbers, without gcra.lua: function calls and numbers as text would take half of the server's time.
local call, pack, parse, text, ceil = redis.call, struct.pack, struct.unpack, string.format, math.ceil

local depth, time = #KEYS, call('TIME')
local stored = call('MGET', unpack(KEYS))
local now = (time[1] - EPOCH) * SECOND + time[2]
local limits = {parse('<' .. ('d'):rep(3 * depth), ARGV[1])}
local most, settled = ARGV[3] and tonumber(ARGV[3]), ARGV[4]
-- Allocated for three levels: growing a table costs as much as a command.
local states, taken, changed, reply, length = {0, 0, 0}, {0, 0, 0}, false, {0, 0, 0, 0, 0}, 0
-- Outstanding leases, where there are any. Stored fill rates over the caller's, where they are larger.
local floors, outstanding, scales

for level = 1, depth do
  local value, initial = stored[level], limits[3 * level]
  states[level] = FULL
  if value then
    local full_at, fill_rate = parse('<dd', value)
    local own_rate = limits[3 * level - 1]
    if fill_rate < own_rate and full_at > now then -- written under another limit: the larger rate fills the bucket
      full_at = now + (full_at - now) * fill_rate / own_rate
    elseif fill_rate > own_rate and full_at > now then
      scales = scales or {}
      scales[level] = fill_rate / own_rate
      limits[3 * level - 2], limits[3 * level - 1] = limits[3 * level - 2] / scales[level], fill_rate
    end
    if #value > 16 then
      floors, outstanding = floors or {}, outstanding or {}
      floors[level], outstanding[level] = parse('<dd', value, 17)
      full_at = full_at < floors[level] and floors[level] or full_at
    end
    states[level] = full_at
  elseif initial > 0 then
    states[level], changed = now + initial, true
  end
end

if most then
  most = scales and 0 or most -- a lease decays at the caller's rate, which is too slow
  floors, outstanding = floors or {}, outstanding or {}
  local size = 8 + 16 * depth
  for level = 1, depth do
    local fill_rate, floor, out = limits[3 * level - 1], floors[level] or FULL, outstanding[level] or 0
    if floor <= now then
      floor, out = FULL, 0
    end
    for at = 1, #settled, size do
      local tokens = parse('<d', settled, at)
      local decays_from, unspent = parse('<dd', settled, at + 16 * level - 8)
      local own_rate = scales and scales[level] and fill_rate / scales[level] or fill_rate
      local ends_at = decays_from + tokens * SECOND / own_rate
      if out > 0 and ends_at > now then
        if out <= tokens then
          floor, out = FULL, 0
        else
          floor, out = ends_at == floor and decays_from or floor, out - tokens
        end
        states[level] = math.max(now, floor, states[level] - unspent * SECOND / fill_rate)
      end
    end
    floors[level], outstanding[level] = floor, out
  end
  length = 2 + depth
end

for at = 1, #ARGV[2], 8 do
  local cost = parse('<d', ARGV[2], at)
  local amount, wait, binding = cost < 0 and -cost or cost, 0, -1
  for level = 1, depth do
    local full_at = states[level]
    local deficit = (full_at > now and full_at - now or 0) + amount * SECOND / limits[3 * level - 1]
    local excess = deficit - limits[3 * level - 2] - HALF_TICK
    if excess > wait then
      wait, binding = ceil(excess), level - 1
    end
    taken[level] = now + deficit
  end
  if wait > 0 then
    most = most and 0 -- the refused caller waits for the tokens that are left
  elseif cost > 0 then
    states, taken, changed = taken, states, true
  end
  reply[length + 1], reply[length + 2] = wait, binding
  for level = 1, depth do
    local missing = states[level] - now
    reply[length + 2 + level] = scales and missing * (scales[level] or 1) or missing
  end
  length = length + 2 + depth
end

if most then
  local tokens = most
  for level = 1, depth do
    local deficit = states[level] > now and states[level] - now or 0
    local available = (limits[3 * level - 2] + HALF_TICK - deficit) * limits[3 * level - 1] / SECOND
    tokens = math.max(0, math.min(tokens, available - available % 1))
  end
  reply[1], reply[2] = tokens, now
  for level = 1, depth do
    local decays_from = math.max(now, states[level])
    if tokens > 0 then
      states[level] = decays_from + tokens * SECOND / limits[3 * level - 1]
      floors[level], outstanding[level] = states[level], outstanding[level] + tokens
    end
    reply[2 + level] = decays_from
  end
  changed = true
end

local packed = pack('<' .. ('d'):rep(length), unpack(reply, 1, length)) -- before the writes: thousands of numbers fail
if changed then
  for level = 1, depth do
    local full_at = states[level]
    if full_at > now then
      local value = pack('<dd', full_at, limits[3 * level - 1])
      if outstanding and (outstanding[level] or 0) > 0 then
        value = value .. pack('<dd', floors[level], outstanding[level])
      end
      -- Setting the expiry costs more than setting the value. At ten tokens a second most calls may keep it: see gcra.lua.
      local before, step = stored[level], full_at - full_at % EXPIRY_STEP
      local previous = before and #before == #value and parse('<d', before)
      if previous and previous - previous % EXPIRY_STEP == step then
        call('SETRANGE', KEYS[level], '0', value)
      else
        call('PSETEX', KEYS[level], text('%d', ceil((step + EXPIRY_STEP - now) / 1000)), value)
      end
    elseif stored[level] then
      call('DEL', KEYS[level])
    end
  end
end
return packed
