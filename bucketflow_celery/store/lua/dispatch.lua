-- dispatch: hand out the tasks whose turn it is and take their tokens; mirrors release.py.
-- KEYS     see backlog.lua, then levels and lanes
-- ARGV     version the caller knows, queue, channel, worker, free slots; then how many levels all tasks pass, and each;
--          then for each tenant: name, weight, 1 and its level or 0, how many types, and for each:
--          task, 1 if the worker knows it, 1 if paused, 1 and its level or 0, how many lanes, and for each: rank, index in KEYS.
--          A level is: index in KEYS, capacity, fill_rate
-- returns  {version} if it is another one; {version, -2} if the worker has no lease; else {version, µs to wait (-1 = until it is
--          called), {for each task: uid, 1 admitted | 0, tenant, task, rank, 1 if redelivered, since µs, cost, deadline µs,
--          message}, {for each tenant that may be next: name, {for each type: task, {ranks}}}}
-- errors   none after the first write
local time = now()
local version = redis.call('GET', VERSION) or ''
if version ~= ARGV[1] then
  return { version }
end
local queue, channel, worker, free = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
if tonumber(redis.call('ZSCORE', WORKERS, worker) or -1) < 0 then
  return { version, -2 }
end

-- The first write must not need memory: then a server that has none left still hands out, and so gets some.
redis.call('ZREM', POLLS, worker)

local at = 6
local function argument()
  at = at + 1
  return ARGV[at - 1]
end
local function number()
  return tonumber(argument())
end
local function level()
  return { key = number(), capacity = number(), fill_rate = number() }
end
local function levels(count)
  local found = {}
  for i = 1, count do
    found[i] = level()
  end
  return found
end

local common = levels(number())
local candidates = {}
while at <= #ARGV do
  local name = argument()
  local candidate = { weight = number(), own = levels(number()), types = {} }
  for _ = 1, number() do
    local task = argument()
    local kind = { known = argument() == '1', paused = argument() == '1', own = levels(number()), lanes = {} }
    for _ = 1, number() do
      local rank = number()
      kind.lanes[rank] = KEYS[number()]
    end
    candidate.types[task] = kind
  end
  candidates[name] = candidate
end

local limits, full_at, reserved_until, changed = {}, {}, {}, {}
local function wait_at(level, cost)
  local key = level.key
  if not limits[key] then
    limits[key] = level
    full_at[key], reserved_until[key], changed[key] = rebased_on(level, redis.call('GET', KEYS[key]), time)
  end
  return wait_for(level, full_at[key], time, cost)
end
local function longest(path, cost)
  local wait = 0
  for _, level in ipairs(path) do
    wait = math.max(wait, wait_at(level, cost))
  end
  return wait
end

-- Under other limits than before nobody knows any more how long to sleep: all wake, as do those whose time has come.
local slept_under = redis.call('HGET', META, 'version') or ''
if version ~= slept_under then
  redis.call('ZUNIONSTORE', DELAYED, 1, DELAYED, 'WEIGHTS', 0)
end
local virtual = virtual_time()
for _, name in ipairs(redis.call('ZRANGEBYSCORE', DELAYED, '-inf', time, 'LIMIT', 0, MOST)) do
  redis.call('ZREM', DELAYED, name)
  wake(name, record_of(name), virtual)
end

local dispatched, uids, owned = {}, {}, {}
local admitted, skipped, unknown, ready_at, later, gap = 0, 0, false, nil, nil, 0

local function stop_unknown()
  unknown, ready_at = true, time
end

local function hand(name, tenant, task, rank, key, is_admitted)
  local packed = redis.call('LPOP', key)
  local item = item_of(packed)
  tenant.cost = tenant.cost - item.cost
  pop_head(name, tenant, task, rank, 1)
  uids[#uids + 1] = item.uid
  owned[#owned + 1] = item.uid
  owned[#owned + 1] = cmsgpack.pack({ queue, name, task, rank, packed })
  dispatched[#dispatched + 1] = {
    item.uid, is_admitted, name, task, rank, item.redelivered, item.since, exact(item.cost), item.deadline,
  }
end

local function fits(path, cost)
  for _, level in ipairs(path) do
    if cost > level.capacity then
      return false
    end
  end
  return true
end

local function serve_type(name, tenant, candidate, task, kind, rank)
  local key = kind.lanes[rank]
  local packed = redis.call('LINDEX', key, 0)
  if not packed then -- somebody has deleted the lane, or the server has evicted it
    pop_head(name, tenant, task, rank, tenant.types[task].lanes[rank])
    return 0
  end
  local item = item_of(packed)
  local fit = fits(common, item.cost) and fits(candidate.own, item.cost) and fits(kind.own, item.cost)
  if (item.deadline > 0 and item.deadline <= time) or not fit then
    hand(name, tenant, task, rank, key, 0)
    return 0
  end
  local wait = math.max(longest(candidate.own, item.cost), longest(kind.own, item.cost))
  if wait > 0 then
    return wait
  end
  for _, level in ipairs(common) do
    local dry = wait_at(level, item.cost)
    if time + dry > (ready_at or time) then
      ready_at = time + dry
      gap = item.cost * SECOND / level.fill_rate
    end
  end
  if ready_at then
    return 0
  end
  for _, path in ipairs({ common, candidate.own, kind.own }) do
    for _, level in ipairs(path) do
      full_at[level.key] = take(level, full_at[level.key], time, item.cost)
      changed[level.key] = true
    end
  end
  virtual = tenant.tag
  tenant.tag = tenant.tag + item.cost / candidate.weight
  redis.call('ZADD', READY, tenant.tag, name)
  tenant.turn = tenant.turn + 1
  tenant.types[task].turn = tenant.turn
  admitted = admitted + 1
  hand(name, tenant, task, rank, key, 1)
  return 0
end

-- Returns 0, or the µs the tenant must sleep, or nil if nothing of it is for this worker.
local function serve_tenant(name, tenant, candidate)
  local sleep, is_for_others
  for _, task in ipairs(turns_of(tenant)) do
    local kind = candidate.types[task]
    local rank = ranks_of(tenant.types[task])[1]
    if not kind or not kind.lanes[rank] then
      stop_unknown()
      return 0
    end
    if kind.known then
      local wait = kind.paused and PAUSE or serve_type(name, tenant, candidate, task, kind, rank)
      if wait == 0 or ready_at then
        return 0
      end
      sleep = math.min(sleep or wait, wait)
    else
      is_for_others = true
    end
  end
  if is_for_others and sleep then -- whoever knows the rest need not wait so long
    later = math.min(later or time + sleep, time + sleep)
    return nil
  end
  return sleep
end

local looked = 0
while admitted < free and looked < MOST do
  looked = looked + 1
  local name = redis.call('ZRANGE', READY, skipped, skipped)[1]
  if not name then
    break
  end
  local candidate = candidates[name]
  if not candidate then
    stop_unknown()
    break
  end
  local wait = serve_tenant(name, record_of(name), candidate)
  if ready_at then
    break
  end
  if not wait then
    skipped = skipped + 1
  elseif wait > 0 then
    redis.call('ZREM', READY, name)
    redis.call('ZADD', DELAYED, time + wait, name)
  end
end
local has_more = admitted >= free or (looked >= MOST and skipped < MOST)
if not ready_at and has_more and redis.call('EXISTS', READY) == 1 then
  ready_at = time + longest(common, 1)
end

-- Write what has changed.
for key in pairs(changed) do
  local ttl = math.max(1, lifetime(full_at[key], reserved_until[key], time))
  redis.call('SET', KEYS[key], pack(limits[key], full_at[key], reserved_until[key]), 'PX', ttl)
end
if #dispatched > 0 then
  redis.call('HSET', OWNED, unpack(owned))
  for i, message in ipairs(redis.call('HMGET', MESSAGES, unpack(uids))) do
    dispatched[i][10] = message
  end
end
save()
if reset_if_empty(queue) then
  redis.call('HSET', META, 'virtual', virtual, 'version', version)
  redis.call('ZREMRANGEBYSCORE', IDLE, '-inf', virtual)
end

-- When this worker comes again, and whether another must be called in its place.
redis.call('ZREMRANGEBYSCORE', POLLS, '-inf', '(' .. exact(time - POLL_GRACE))
local function sleeper(at)
  local found = redis.call('ZRANGE', DELAYED, at, at, 'WITHSCORES')
  return found[1] and tonumber(found[2])
end
if not ready_at then
  local first = sleeper(0)
  ready_at = first and later and math.min(first, later) or first or later
end
local wait = -1
if admitted >= free then
  if ready_at then
    call(ready_at, time, channel, queue)
  end
elseif unknown then
  wait = 0
else
  -- Whoever was called has come, and has left nothing: for what is parked next it is called again.
  redis.call('HDEL', META, 'notified_at')
  if ready_at then
    local ahead = 0
    if expected_polls(ready_at, time) >= WORKERS_PER_POLL then
      ahead = math.floor(redis.call('ZCARD', POLLS) / WORKERS_PER_POLL)
    end
    local turn = ready_at + ahead * gap
    if gap == 0 and ahead > 0 then
      turn = math.max(ready_at, sleeper(ahead) or time + SECOND)
    end
    redis.call('ZADD', POLLS, turn, worker)
    wait = math.max(0, math.ceil(turn - time))
  end
end

-- Who may be next.
local following = {}
local function tell(names)
  read_records(names)
  for _, name in ipairs(names) do
    local types, tenant = {}, record_of(name)
    for _, task in ipairs(turns_of(tenant)) do
      types[#types + 1] = task
      types[#types + 1] = ranks_of(tenant.types[task])
    end
    following[#following + 1] = name
    following[#following + 1] = types
  end
end
tell(redis.call('ZRANGE', READY, 0, free + skipped + SPARE - 1))
tell(redis.call('ZRANGE', DELAYED, 0, SPARE - 1))
return { version, wait, dispatched, following }
