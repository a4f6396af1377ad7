-- admit: answer several tasks at once, in order, each as if it had come alone; mirrors admission.py line by line.
-- KEYS[1]    version of the limits
-- KEYS[2..]  the levels that the tasks pass, each once, one hash tag: see under() in core.lua; and of each queue whose
--            tasks are parked its tenants, ready and asleep: see backlog.lua
-- ARGV       version the caller knows, then for each task: cost, patience µs, index of its queue's tenants in KEYS (0 = it is
--            not parked), tenant, depth, and for each level, root first:
--            index in KEYS, capacity, fill_rate, due µs (0 = no place), 1 if a task refused here returns to the broker
-- returns    {version} if it is another one; else {version, then for each task: 1 admitted | 0 refused | -1 not put,
--            binding level (0 = first; -1 = none), wait µs, due µs at each level of its path}
-- errors     none after the first write
local LATE = 60 * SECOND
local EXCUSED = 1

local stored = redis.call('MGET', unpack(KEYS))
local version = stored[1] or ''
if version ~= ARGV[1] then
  return { version }
end

local time = now()
local limits, full_at, line_at, reckoned, changed, dry = {}, {}, {}, {}, {}, {}

local reply = { version }
local function answer(status, binding, wait, path)
  reply[#reply + 1] = status
  reply[#reply + 1] = binding
  reply[#reply + 1] = wait
  for _, level in ipairs(path) do
    reply[#reply + 1] = level.due
  end
end

local function admit_one(path, cost, patience)
  local waits, wait = {}, 0
  for i, level in ipairs(path) do
    local key = level.key
    changed[key] = changed[key] or reckoned[key]
    if level.due < time - LATE or level.due > math.max(time, line_at[key]) then
      level.due = 0
    end
    local turn = line_at[key] > 0 and line_at[key] + cost * SECOND / level.fill_rate or 0
    local is_over = turn > time or (line_at[key] > 0 and line_at[key] + PATIENCE <= time)
    if is_over and full_at[key] + PATIENCE <= time then
      line_at[key], turn = 0, 0
      changed[key] = true
    end
    waits[i] = math.max(
      wait_for(level, full_at[key], time, cost), math.ceil((level.due > 0 and level.due or turn) - time))
    wait = math.max(wait, waits[i])
  end
  if wait == 0 then
    for _, level in ipairs(path) do
      full_at[level.key] = take(level, full_at[level.key], time, cost)
      changed[level.key] = true
    end
    return answer(1, -1, 0, path)
  end
  local binding = 1
  while waits[binding] < wait do
    binding = binding + 1
  end
  if wait <= patience then
    local bound, due = path[binding], time + wait
    if bound.due == 0 then
      bound.due = due
      line_at[bound.key] = due
      changed[bound.key] = true
    end
    for i, level in ipairs(path) do
      if bound.returns and level.returns and waits[i] > 0 and level.due == 0 then
        level.due = due - EXCUSED
      end
    end
  end
  if not path[binding].returns then
    dry[path[binding].key] = true
  end
  return answer(0, binding - 1, wait, path)
end

-- Whether a fresh task of this tenant would overtake somebody who is parked.
local function is_blocked(index, tenant)
  if redis.call('HEXISTS', KEYS[index], tenant) == 1 or redis.call('EXISTS', KEYS[index + 1]) == 1 then
    return true
  end
  local first = redis.call('ZRANGE', KEYS[index + 2], 0, 0, 'WITHSCORES')
  return first[1] and tonumber(first[2]) <= time
end

local at = 2
while at <= #ARGV do
  local cost, patience, depth = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 4])
  local backlog, tenant = tonumber(ARGV[at + 2]), ARGV[at + 3]
  at = at + 5
  local path, is_dry = {}, false
  for i = 1, depth do
    local key = tonumber(ARGV[at])
    path[i] = {
      key = key,
      capacity = tonumber(ARGV[at + 1]),
      fill_rate = tonumber(ARGV[at + 2]),
      due = tonumber(ARGV[at + 3]),
      returns = ARGV[at + 4] == '1',
    }
    is_dry = is_dry or dry[key]
    if not limits[key] then
      limits[key] = path[i]
      full_at[key], line_at[key], reckoned[key] = under(path[i], stored[key], time)
    end
    at = at + 5
  end
  if is_dry or (backlog > 0 and is_blocked(backlog, tenant)) then
    answer(-1, -1, 0, path)
  else
    admit_one(path, cost, patience)
  end
end

for key in pairs(changed) do
  local ttl = lifetime(full_at[key], line_at[key], time)
  if ttl > 0 then
    redis.call('SET', KEYS[key], pack(limits[key], full_at[key], line_at[key]), 'PX', ttl)
  else
    redis.call('DEL', KEYS[key])
  end
end
return reply
