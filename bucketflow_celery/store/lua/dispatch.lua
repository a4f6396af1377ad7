-- dispatch: dispatch the parked tasks that are next, as many as the worker has free slots, and take their tokens.
-- KEYS     see backlog.lua, then levels and lanes
-- ARGV     version the caller knows, queue, channel, worker, free slots; how many parked task types the worker can run, and
--          each; how many it cannot run, and each; then how many levels all tasks pass, and each;
--          then for each tenant: name, weight, 1 and its level or 0, how many types that the worker can run, and for each:
--          task, 1 if paused, 1 and its level or 0, how many lanes, and for each: rank, index in KEYS. A level is: index in
--          KEYS, capacity, fill_rate
-- returns  {version} if it is another one; {version, -2} if the worker has no lease; else {version, µs to wait (-1 = until a
--          notification), {for each task: uid, 1 admitted | 0, tenant, task, rank, 1 if redelivered, since µs, cost,
--          deadline µs, message}, {for each tenant that may be next: name, {for each type: task, {ranks}}}, {all parked task
--          types}, {those of the types that it cannot run that no live worker can run either}}
-- errors   none after the first write
-- mirrors  bucketflow_celery/scheduling/dispatch.py: dispatch
local time = now()
local version = redis.call('GET', VERSION) or ''
if version ~= ARGV[1] then
  return {version}
end
local queue, channel, worker, free = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
if tonumber(redis.call('ZSCORE', WORKERS, worker) or RECLAIMED) < 0 then
  return {version, -2}
end

-- The first write must not need memory: then a server that is out of memory still dispatches, which frees some.
redis.call('ZREM', POLLS, worker)

local word, number, has_more = reader(6)

local function read_words()
  local words = {}
  for i = 1, number() do
    words[i] = word()
  end
  return words
end
local tasks, other_tasks = read_words(), read_words()
local is_own, is_other, is_named = {}, {}, true
for _, task in ipairs(tasks) do
  is_own[task] = true
end
for _, task in ipairs(other_tasks) do
  is_other[task] = true
end

local function read_levels()
  local levels = {}
  for i = 1, number() do
    levels[i] = {key = number(), capacity = number(), fill_rate = number()}
  end
  return levels
end

local function read_type()
  local kind = {paused = word() == '1', own = read_levels(), lanes = {}}
  for _ = 1, number() do
    local rank = number()
    kind.lanes[rank] = KEYS[number()]
  end
  return kind
end

local common = read_levels()
local candidates = {}
while has_more() do
  local name = word()
  local candidate = {weight = number(), own = read_levels(), types = {}}
  for _ = 1, number() do
    local task = word()
    candidate.types[task] = read_type()
  end
  candidates[name] = candidate
end

local limits, full_at, reserved_until, changed, debts = {}, {}, {}, {}, {}
local function wait_at(level, cost)
  local key = level.key
  if not limits[key] then
    limits[key] = level
    full_at[key], reserved_until[key], changed[key], debts[key] = rebased_on(level, redis.call('GET', KEYS[key]), time)
  end
  return wait_for(level, full_at[key], time, cost)
end
local function longest_wait(path, cost)
  local wait = 0
  for _, level in ipairs(path) do
    wait = math.max(wait, wait_at(level, cost))
  end
  return wait
end
local function fits(path, cost)
  for _, level in ipairs(path) do
    if cost > level.capacity then
      return false
    end
  end
  return true
end
local function take_all(path, cost)
  for _, level in ipairs(path) do
    full_at[level.key] = take(level, full_at[level.key], time, cost)
    debts[level.key] = debts[level.key] and owe(debts[level.key], time, cost)
    changed[level.key] = true
  end
end

-- Other limits invalidate every delay: all tenants become ready, like those whose delay is over.
if version ~= (redis.call('HGET', META, 'version') or '') then
  redis.call('ZUNIONSTORE', DELAYED, 1, DELAYED, 'WEIGHTS', 0)
end
local virtual = virtual_time()
for _, name in ipairs(redis.call('ZRANGEBYSCORE', DELAYED, '-inf', time, 'LIMIT', 0, MAX_TENANTS)) do
  redis.call('ZREM', DELAYED, name)
  wake(name, record_of(name), virtual)
end

-- Record that the worker can run the parked task types for which no live worker is recorded.
local types, unclaimed, parked_tasks, entries = {}, {}, {}, redis.call('HGETALL', TYPES)
for at = 1, #entries, 2 do
  local task, claimant = entries[at], entries[at + 1]
  types[#types + 1] = task
  is_named = is_named and (is_own[task] or is_other[task])
  local is_claimed = is_live(claimant, time)
  if not is_claimed and is_own[task] then
    redis.call('HSET', TYPES, task, worker)
  elseif not is_claimed and is_other[task] and first_ready(task, 1)[1] then
    unclaimed[#unclaimed + 1] = task
  end
  if not is_other[task] then
    parked_tasks[#parked_tasks + 1] = task
  end
end
table.sort(types)
table.sort(unclaimed)

-- Return the names of the first tenants with a ready task of one of these types, lowest tag first.
local function first_tenants(of, count)
  local found, seen, names = {}, {}, {}
  for _, task in ipairs(of) do
    for _, one in ipairs(first_ready(task, count)) do
      if not seen[one.name] then
        seen[one.name] = true
        found[#found + 1] = one
      end
    end
  end
  table.sort(found, function(one, other)
    return one.tag < other.tag or (one.tag == other.tag and one.name < other.name)
  end)
  for i = 1, math.min(count, #found) do
    names[i] = found[i].name
  end
  return names
end

local dispatched, uids, owned = {}, {}, {}
local admitted, incomplete, ready_at, interval = 0, false, nil, 0

local function stop_incomplete()
  incomplete, ready_at = true, time
end

local function dispatch_head(name, tenant, task, rank, key, is_admitted)
  local packed = redis.call('LPOP', key)
  local item = item_of(packed)
  tenant.cost = tenant.cost - item.cost
  pop_head(name, tenant, task, rank, 1)
  uids[#uids + 1] = item.uid
  owned[#owned + 1] = item.uid
  owned[#owned + 1] = cmsgpack.pack({queue, name, task, rank, packed})
  dispatched[#dispatched + 1] = {
    item.uid, is_admitted, name, task, rank, item.redelivered, item.since, exact(item.cost), item.deadline,
  }
end

-- Take the tokens of every level, and move the tenant behind the others by cost / weight.
local function charge(name, tenant, candidate, task, kind, cost)
  take_all(common, cost)
  take_all(candidate.own, cost)
  take_all(kind.own, cost)
  virtual = tenant.tag
  set_tag(name, tenant, tenant.tag + cost / candidate.weight)
  tenant.turn = tenant.turn + 1
  tenant.types[task].turn = tenant.turn
  admitted = admitted + 1
end

-- Serve the first task of one type. Return 0, or the µs until the limits of tenant and type allow it.
local function serve_type(name, tenant, candidate, task, kind, rank)
  local key = kind.lanes[rank]
  local packed = redis.call('LINDEX', key, 0)
  if not packed then -- the lane was deleted or evicted
    pop_head(name, tenant, task, rank, tenant.types[task].lanes[rank])
    return 0
  end
  local item = item_of(packed)
  local fit = fits(common, item.cost) and fits(candidate.own, item.cost) and fits(kind.own, item.cost)
  if (item.deadline > 0 and item.deadline <= time) or not fit then
    dispatch_head(name, tenant, task, rank, key, 0)
    return 0
  end
  local wait = math.max(longest_wait(candidate.own, item.cost), longest_wait(kind.own, item.cost))
  if wait > 0 then
    return wait
  end
  for _, level in ipairs(common) do
    local common_wait = wait_at(level, item.cost)
    if time + common_wait > (ready_at or time) then
      ready_at = time + common_wait
      interval = item.cost * SECOND / level.fill_rate
    end
  end
  if ready_at then
    return 0
  end
  charge(name, tenant, candidate, task, kind, item.cost)
  dispatch_head(name, tenant, task, rank, key, 1)
  return 0
end

-- Serve one task. Return 0, or the µs for which to delay the types that this worker can run.
local function serve_tenant(name, tenant, candidate)
  local delay
  for _, task in ipairs(service_order(tenant)) do
    if is_own[task] and redis.call('ZSCORE', READY, ready_member(task, tenant.tag, name)) then
      local kind = candidate.types[task]
      local rank = ranks_of(tenant.types[task])[1]
      if not kind or not kind.lanes[rank] then
        stop_incomplete()
        return 0
      end
      local wait = kind.paused and PAUSED_DELAY or serve_type(name, tenant, candidate, task, kind, rank)
      if wait == 0 or ready_at then
        return 0
      end
      delay = math.min(delay or wait, wait)
    end
  end
  return delay
end

-- Delay the types that this worker can run. The others stay ready for other workers.
local function delay_tenant(name, tenant, until_at)
  for _, task in ipairs(tasks) do
    clear_ready(task, name, tenant.tag)
  end
  local delayed_until = tonumber(redis.call('ZSCORE', DELAYED, name) or until_at)
  redis.call('ZADD', DELAYED, math.min(until_at, delayed_until), name)
end

-- The first ready tenant of each task type, as far as it was read and has not changed since; false: there is none.
local heads = {}
local function next_tenant()
  local first
  for _, task in ipairs(tasks) do
    if heads[task] == nil then
      heads[task] = first_ready(task, 1)[1] or false
    end
    local one = heads[task]
    if one and (not first or one.tag < first.tag or (one.tag == first.tag and one.name < first.name)) then
      first = one
    end
  end
  return first and first.name
end

local examined = 0
if not is_named then
  stop_incomplete()
end
while is_named and admitted < free and examined < MAX_TENANTS do
  examined = examined + 1
  local name = next_tenant()
  if not name then
    break
  end
  local candidate = candidates[name]
  if not candidate then
    stop_incomplete()
    break
  end
  local tenant = record_of(name)
  local its_tasks = service_order(tenant)
  local delay = serve_tenant(name, tenant, candidate)
  if ready_at then
    break
  end
  if delay > 0 then
    delay_tenant(name, tenant, time + delay)
  end
  for _, task in ipairs(its_tasks) do
    heads[task] = nil
  end
end
local has_more_tenants = admitted >= free or examined >= MAX_TENANTS
if not ready_at and has_more_tenants and next_tenant() then
  ready_at = time + longest_wait(common, 1)
end

for key in pairs(changed) do
  write_level(KEYS[key], limits[key], full_at[key], reserved_until[key], time, debts[key])
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

-- When this worker polls again, or whether another is notified instead: mirrors _schedule_poll and _poll_time.
redis.call('ZREMRANGEBYSCORE', POLLS, '-inf', '(' .. exact(time - POLL_GRACE))
local function delayed_until(at)
  local found = redis.call('ZRANGE', DELAYED, at, at, 'WITHSCORES')
  return found[1] and tonumber(found[2])
end
if not ready_at then
  ready_at = delayed_until(0)
end
local wait = -1
if admitted >= free then
  if ready_at then
    notify(ready_at, time, channel, queue)
  end
elseif incomplete then
  wait = 0
else
  -- The notified worker has polled and left nothing that may start: the next parked task needs a notification again.
  redis.call('HDEL', META, 'notified_at')
  if ready_at then
    local ahead = 0
    if expected_polls(ready_at, time) >= WORKERS_PER_POLL then
      ahead = math.floor(redis.call('ZCARD', POLLS) / WORKERS_PER_POLL)
    end
    local poll_at = ready_at + ahead * interval
    if interval == 0 and ahead > 0 then
      poll_at = math.max(ready_at, delayed_until(ahead) or time + SECOND)
    end
    redis.call('ZADD', POLLS, poll_at, worker)
    wait = math.max(0, math.ceil(poll_at - time))
  end
end

-- The tenants that may be next: mirrors _next_tenants.
local next_tenants = {}
local function add_summaries(names)
  read_records(names)
  for _, name in ipairs(names) do
    local types, tenant = {}, record_of(name)
    for _, task in ipairs(service_order(tenant)) do
      types[#types + 1] = task
      types[#types + 1] = ranks_of(tenant.types[task])
    end
    next_tenants[#next_tenants + 1] = name
    next_tenants[#next_tenants + 1] = types
  end
end
add_summaries(first_tenants(parked_tasks, free + SPARE_TENANTS))
add_summaries(redis.call('ZRANGE', DELAYED, 0, SPARE_TENANTS - 1))
return {version, wait, dispatched, next_tenants, types, unclaimed}
