-- admit: decide several requests in order, each as if it were alone: a task starts and pays every level, or is refused.
-- KEYS[1]    version of the limits
-- KEYS[2..]  the levels of all requests, each once, one hash tag; then tenants, ready and delayed of each backlog that a
--            request must not overtake: see backlog.lua
-- ARGV       version the caller knows, limits (packed doubles, of each level: capacity, fill_rate, 1 if a refusal there
--            blocks the whole queue), requests (packed doubles, of each request: cost, longest wait in µs, number of its
--            backlog from 1 (0 = none), depth, and for each level of its path, root first: number of the level,
--            reservation in µs (0 = none)), then for each request with a backlog: tenant
-- returns    {version} if it is another one; else of each request: 1 admitted | 0 refused | -1 skipped, binding level (0 =
--            first; -1 = none), wait in µs, reservation in µs at each level of its path (one string of packed doubles)
-- errors     none after the first write
-- mirrors    bucketflow_celery/scheduling/admit.py: admit

-- One loop over packed numbers: function calls and numbers as text would take most of the server's time.
local parse, ceil = struct.unpack, math.ceil

local stored = redis.call('MGET', unpack(KEYS))
if (stored[1] or '') ~= ARGV[1] then
  return {stored[1] or ''}
end

local function doubles(packed)
  return {parse('<' .. ('d'):rep(#packed / 8), packed)}
end
local limits, requests, time = doubles(ARGV[2]), doubles(ARGV[3]), now()
local levels, full_at, reserved_until, rebased, debts, changed, exhausted = {}, {}, {}, {}, {}, {}, {}
for i = 1, #limits / 3 do
  levels[i] = {capacity = limits[3 * i - 2], fill_rate = limits[3 * i - 1], blocks_queue = limits[3 * i] == 1}
  full_at[i], reserved_until[i], rebased[i], debts[i] = rebased_on(levels[i], stored[i + 1], time)
end

-- Return whether a fresh task of tenant would overtake a parked one. Mirrors Backlog.blocks.
local function blocks(backlog, tenant)
  local at = 2 + #levels + 3 * (backlog - 1)
  if redis.call('HEXISTS', KEYS[at], tenant) == 1 or redis.call('EXISTS', KEYS[at + 1]) == 1 then
    return true
  end
  local first = redis.call('ZRANGE', KEYS[at + 2], 0, 0, 'WITHSCORES')
  return first[1] and tonumber(first[2]) <= time
end

local reply, waits, taken, at, tenant = {}, {}, {}, 1, 3
while at < #requests do
  local cost, max_wait, backlog = requests[at], requests[at + 1], requests[at + 2]
  local first = at + 4
  local last = first + 2 * (requests[at + 3] - 1)
  at = last + 2

  local is_evaluated = true
  for i = first, last, 2 do
    is_evaluated = is_evaluated and not exhausted[requests[i]]
  end
  if backlog > 0 then
    tenant = tenant + 1
    is_evaluated = is_evaluated and not blocks(backlog, ARGV[tenant])
  end

  local wait, binding = 0, nil
  for i = first, is_evaluated and last or 0, 2 do
    local n, reservation = requests[i], requests[i + 1]
    local level, full, reserved = levels[n], full_at[n], reserved_until[n]
    changed[n] = changed[n] or rebased[n]
    if reservation < time - RESERVATION_GRACE or (reservation > time and reservation > reserved) then
      reservation, requests[i + 1] = 0, 0
    end
    local increment = cost * SECOND / level.fill_rate
    local next_start = reserved > 0 and reserved + increment or 0
    local is_expired = next_start > time or (reserved > 0 and reserved + RESERVATION_TTL <= time)
    if is_expired and full + RESERVATION_TTL <= time then
      reserved_until[n], next_start, changed[n] = 0, 0, true
    elseif next_start > time and full + LATE <= time then
      next_start = math.min(next_start, full + RESERVATION_TTL)
    end
    local deficit = (full > time and full - time or 0) + increment
    local level_wait = ceil(deficit - span(level) - HALF_TICK)
    local until_start = ceil((reservation > 0 and reservation or next_start) - time)
    if until_start > level_wait then
      level_wait = until_start
    end
    if level_wait > wait then
      wait, binding = level_wait, i
    end
    waits[i], taken[i] = level_wait, time + deficit
  end

  if binding then
    local bound, start = levels[requests[binding]], time + wait
    local reserves = wait <= max_wait
    if reserves and requests[binding + 1] == 0 then
      local n = requests[binding]
      requests[binding + 1], reserved_until[n], changed[n] = start, math.max(reserved_until[n], start), true
    end
    for i = first, reserves and not bound.blocks_queue and last or 0, 2 do
      if not levels[requests[i]].blocks_queue and waits[i] > 0 and requests[i + 1] == 0 then
        requests[i + 1] = start - WAIVER
      end
    end
    exhausted[requests[binding]] = bound.blocks_queue
  elseif is_evaluated then
    for i = first, last, 2 do
      local n = requests[i]
      full_at[n], changed[n], debts[n] = taken[i], true, debts[n] and owe(debts[n], time, cost)
    end
  end

  local size = #reply
  reply[size + 1] = binding and 0 or is_evaluated and 1 or -1
  reply[size + 2] = binding and (binding - first) / 2 or -1
  reply[size + 3] = wait
  size = size + 3
  for i = first, last, 2 do
    size = size + 1
    reply[size] = requests[i + 1]
  end
end

for i, level in ipairs(levels) do
  if changed[i] then
    if lifetime(full_at[i], reserved_until[i], time, debts[i]) > 0 then
      write_level(KEYS[i + 1], level, full_at[i], reserved_until[i], time, debts[i])
    else
      redis.call('DEL', KEYS[i + 1])
    end
  end
end
return struct.pack('<' .. ('d'):rep(#reply), unpack(reply))
