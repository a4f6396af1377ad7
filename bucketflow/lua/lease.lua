-- lease: settle leases of the caller, answer costs as consume.lua does, then take more tokens for the caller to spend by itself.
-- KEYS[i]  one bucket a level, root first, one hash tag
-- ARGV     limits (packed doubles, of each level: capacity, fill rate, µs behind if its key is missing), costs (packed doubles; a negative one only looks), most tokens to lease, settled leases (packed doubles, of each: tokens, and of each level: µs at which it began to fade, tokens unspent)
-- returns  {tokens leased, µs now, then µs at which they begin to fade at each level} and for each cost {wait in µs, binding level from 0 or -1, then µs behind full at each level} (one string of packed doubles)
-- errors   none after the first write

-- Behind the eight bytes of a bucket stands what is out on lease, if anything is: two more doubles, see lease.py.
local function still_out(limit, out, now)
  return {floor = out.floor, tokens = math.max(0, math.min(out.tokens, (out.floor - now) * limit.fill_rate / SECOND))}
end

local function whole_until(limit, out)
  return out.floor - out.tokens * SECOND / limit.fill_rate
end

local function right(limit, tokens, whole_at, now)
  local faded = (now > whole_at and now - whole_at or 0) * limit.fill_rate / SECOND
  return math.max(0, tokens - faded)
end

local function settle(limit, full_at, out, now, tokens, whole_at, unspent)
  local ended = math.min(out.tokens, right(limit, tokens, whole_at, now))
  local left = {floor = out.floor - ended * SECOND / limit.fill_rate, tokens = out.tokens - ended}
  -- Where less is out than was leased, the bucket is another one: the server was emptied meanwhile.
  return refund(limit, full_at, now, math.min(unspent, ended), left), left
end

local function leasable(limit, full_at, now, most)
  local behind = full_at > now and full_at - now or 0
  return math.max(0, math.min(most, math.floor((span(limit) + HALF_TICK - behind) * limit.fill_rate / SECOND)))
end

local function lease(limit, full_at, out, now, tokens)
  full_at = take(limit, full_at, now, tokens)
  return full_at, {floor = full_at, tokens = out.tokens + tokens}
end

local function numbers(packed)
  local list = {struct.unpack('<' .. ('d'):rep(#packed / 8), packed)}
  list[#list] = nil -- where unpack stopped
  return list
end

local depth, now, stored = #KEYS, now(), redis.call('MGET', unpack(KEYS))
local limits, most, settled = numbers(ARGV[1]), tonumber(ARGV[3]), numbers(ARGV[4])
local path, states, outs, answers, all_paid = {}, {}, {}, {}, true

for level = 1, depth do
  local limit = {capacity = limits[3 * level - 2], fill_rate = limits[3 * level - 1]}
  local full_at, out = unpack_bucket(stored[level])
  if not stored[level] and limits[3 * level] > 0 then
    full_at = now + limits[3 * level]
  end
  out = still_out(limit, out, now)
  for at = 1, #settled, 1 + 2 * depth do
    full_at, out = settle(limit, full_at, out, now, settled[at], settled[at + 2 * level - 1], settled[at + 2 * level])
  end
  path[level], states[level], outs[level] = limit, full_at, out
end

for _, cost in ipairs(numbers(ARGV[2])) do
  local amount, wait, binding = math.abs(cost), 0, -1
  for level, limit in ipairs(path) do
    local level_wait = wait_for(limit, states[level], now, amount)
    if level_wait > wait then
      wait, binding = level_wait, level - 1
    end
  end
  for level, limit in ipairs(path) do
    if wait == 0 and cost > 0 then
      states[level] = take(limit, states[level], now, cost)
    end
  end
  all_paid = all_paid and wait == 0
  answers[#answers + 1], answers[#answers + 2] = wait, binding
  for level = 1, depth do
    answers[#answers + 1] = states[level] - now
  end
end

-- Whoever was refused is waiting for what is left.
local tokens = all_paid and most or 0
for level, limit in ipairs(path) do
  tokens = leasable(limit, states[level], now, tokens)
end
local reply = {tokens, now}
for level, limit in ipairs(path) do
  if tokens > 0 then
    states[level], outs[level] = lease(limit, states[level], outs[level], now, tokens)
  end
  reply[2 + level] = whole_until(limit, outs[level])
  write(KEYS[level], states[level], now, outs[level])
end
for _, number in ipairs(answers) do
  reply[#reply + 1] = number
end
return struct.pack('<' .. ('d'):rep(#reply), unpack(reply))
