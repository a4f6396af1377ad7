-- admit: answer several tasks at once, in order, each as if it had come alone; mirrors admission.py.
-- KEYS[1]    version of the limits
-- KEYS[2..]  the levels that the tasks pass, each once, one hash tag: see rebased_on() in level.lua; then of each queue whose tasks
--            are parked its tenants, ready and delayed: see backlog.lua
-- ARGV       version the caller knows, limits (packed doubles, of each level: capacity, fill_rate, 1 if a refusal there
--            blocks the whole queue), tasks (packed doubles, of each task: cost, patience µs, number of its queue among those
--            whose tasks are parked (0 = it is not parked), depth, and for each level of its path, root first: number of the
--            level, due µs (0 = no place)), then for each task that is parked: tenant
-- returns    {version} if it is another one; else of each task: 1 admitted | 0 refused | -1 not put, binding level (0 = first;
--            -1 = none), wait µs, due µs at each level of its path (one string of packed doubles)
-- errors     none after the first write

-- One loop, with every number packed: calls and texts would be most of the server's time.
local parse, ceil = struct.unpack, math.ceil
local RESERVATION_GRACE, WAIVER = 60 * SECOND, 1

local stored = redis.call('MGET', unpack(KEYS))
if (stored[1] or '') ~= ARGV[1] then
  return {stored[1] or ''}
end

local function doubles(packed)
  return {parse('<' .. ('d'):rep(#packed / 8), packed)}
end
local limits, tasks, time = doubles(ARGV[2]), doubles(ARGV[3]), now()
local levels, full_at, reserved_until, reckoned, changed, exhausted = {}, {}, {}, {}, {}, {}
for i = 1, #limits / 3 do
  levels[i] = {capacity = limits[3 * i - 2], fill_rate = limits[3 * i - 1], blocks_queue = limits[3 * i] == 1}
  full_at[i], reserved_until[i], reckoned[i] = rebased_on(levels[i], stored[i + 1], time)
end

-- Whether a fresh task of this tenant would overtake somebody who is parked.
local function is_blocked(queue, tenant)
  local at = 2 + #levels + 3 * (queue - 1)
  if redis.call('HEXISTS', KEYS[at], tenant) == 1 or redis.call('EXISTS', KEYS[at + 1]) == 1 then
    return true
  end
  local first = redis.call('ZRANGE', KEYS[at + 2], 0, 0, 'WITHSCORES')
  return first[1] and tonumber(first[2]) <= time
end

local reply, waits, taken, at, parked = {}, {}, {}, 1, 3
while at < #tasks do
  local cost, patience, queue = tasks[at], tasks[at + 1], tasks[at + 2]
  local first = at + 4
  local last = first + 2 * (tasks[at + 3] - 1)
  at = last + 2

  local is_put = true
  for i = first, last, 2 do
    is_put = is_put and not exhausted[tasks[i]]
  end
  if queue > 0 then
    parked = parked + 1
    is_put = is_put and not is_blocked(queue, ARGV[parked])
  end

  local wait, binding = 0, nil
  for i = first, is_put and last or 0, 2 do
    local n, due = tasks[i], tasks[i + 1]
    local level, full, line = levels[n], full_at[n], reserved_until[n]
    changed[n] = changed[n] or reckoned[n]
    if due < time - RESERVATION_GRACE or (due > time and due > line) then
      due, tasks[i + 1] = 0, 0
    end
    local spent = cost * SECOND / level.fill_rate
    local turn = line > 0 and line + spent or 0
    if full + RESERVATION_TTL <= time and (turn > time or (line > 0 and line + RESERVATION_TTL <= time)) then
      reserved_until[n], turn, changed[n] = 0, 0, true
    end
    local behind = (full > time and full - time or 0) + spent
    local level_wait = ceil(behind - span(level) - HALF_TICK)
    local place = ceil((due > 0 and due or turn) - time)
    if place > level_wait then
      level_wait = place
    end
    if level_wait > wait then
      wait, binding = level_wait, i
    end
    waits[i], taken[i] = level_wait, time + behind
  end

  if binding then
    local bound, due = levels[tasks[binding]], time + wait
    local books = wait <= patience
    if books and tasks[binding + 1] == 0 then
      local n = tasks[binding]
      tasks[binding + 1], reserved_until[n], changed[n] = due, due, true
    end
    for i = first, books and not bound.blocks_queue and last or 0, 2 do
      if not levels[tasks[i]].blocks_queue and waits[i] > 0 and tasks[i + 1] == 0 then
        tasks[i + 1] = due - WAIVER
      end
    end
    exhausted[tasks[binding]] = bound.blocks_queue
  elseif is_put then
    for i = first, last, 2 do
      full_at[tasks[i]], changed[tasks[i]] = taken[i], true
    end
  end

  local size = #reply
  reply[size + 1] = binding and 0 or is_put and 1 or -1
  reply[size + 2] = binding and (binding - first) / 2 or -1
  reply[size + 3] = wait
  size = size + 3
  for i = first, last, 2 do
    size = size + 1
    reply[size] = tasks[i + 1]
  end
end

for i, level in ipairs(levels) do
  if changed[i] then
    local ttl = lifetime(full_at[i], reserved_until[i], time)
    if ttl > 0 then
      redis.call('SET', KEYS[i + 1], pack(level, full_at[i], reserved_until[i]), 'PX', ttl)
    else
      redis.call('DEL', KEYS[i + 1])
    end
  end
end
return struct.pack('<' .. ('d'):rep(#reply), unpack(reply))
