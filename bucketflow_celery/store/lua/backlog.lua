-- backlog: the state of one queue's backlog. Prelude of the scripts that use it, behind level.lua.
-- KEYS[1..13] are the same for all of these scripts, one hash tag:
--   version   of the limits
--   messages  hash: uid -> message
--   tenants   hash: tenant -> {tag, turn, cost, types = {task -> {turn, lanes = {rank -> length}}}}, as MessagePack; turn
--             numbers the tenant's services, and of a type it is the number of the latest one
--   ready     sorted set, all scores 0: task, a zero byte, tag as a big-endian double, tenant. By lexicographic range it is
--             an order of the tenants by tag for each task type, under one key
--   delayed   sorted set: tenant -> µs at which it becomes ready again
--   idle      sorted set: tenant without tasks -> tag, until the virtual time passes the tag
--   polls     sorted set: worker -> µs at which it is expected to poll
--   dedup     sorted set: uid -> µs at which it was parked, until the broker's copy is acknowledged
--   meta      hash: virtual time, count, notified_at, version of the limits under which delayed was computed
--   owned     hash of the calling worker: uid -> {queue, tenant, task, rank, item}, as MessagePack
--   workers   sorted set: worker -> µs at which its lease expires; RECLAIMED while its tasks are being reclaimed
--   queues    set: queues with parked tasks
--   types     hash: task type that was parked since the backlog was empty -> a worker that can run it, or an empty string
-- A lane is a list of items. An item is one byte (redelivered), the packed doubles since, cost and deadline, and the uid.
-- mirrors  bucketflow_celery/scheduling/backlog.py: Backlog, Tenant, TypeLanes
local VERSION, MESSAGES, TENANTS, READY, DELAYED = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local IDLE, POLLS, DEDUP, META, OWNED, WORKERS = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local QUEUES, TYPES = KEYS[12], KEYS[13]

-- Return three functions over ARGV from start on: read a word, read a number, and tell whether there is more.
local function reader(start)
  local at = start - 1
  local function word()
    at = at + 1
    return ARGV[at]
  end
  local function number()
    return tonumber(word())
  end
  local function has_more()
    return at < #ARGV
  end
  return word, number, has_more
end

local function item_of(packed)
  local redelivered, since, cost, deadline, at = struct.unpack('<Bddd', packed)
  return {redelivered = redelivered, since = since, cost = cost, deadline = deadline, uid = packed:sub(at)}
end

local function pack_item(item)
  return struct.pack('<Bddd', item.redelivered, item.since, item.cost, item.deadline) .. item.uid
end

-- The tenants that were read, those that changed, and how many tasks were added less removed: save() writes all at once.
local records, changed_tenants, growth = {}, {}, 0

local function read_records(names)
  local unread = {}
  for _, name in ipairs(names) do
    if records[name] == nil then
      unread[#unread + 1] = name
    end
  end
  if #unread > 0 then
    local found = redis.call('HMGET', TENANTS, unpack(unread))
    for i, name in ipairs(unread) do
      records[name] = found[i] and cmsgpack.unpack(found[i]) or false
    end
  end
end

local function record_of(name)
  if records[name] == nil then
    read_records({name})
  end
  return records[name]
end

local function service_order(tenant)
  local names = {}
  for name in pairs(tenant.types) do
    names[#names + 1] = name
  end
  table.sort(names, function(one, other)
    local first, second = tenant.types[one].turn, tenant.types[other].turn
    return first < second or (first == second and one < other)
  end)
  return names
end

local function ranks_of(kind)
  local ranks = {}
  for rank in pairs(kind.lanes) do
    ranks[#ranks + 1] = rank
  end
  table.sort(ranks)
  return ranks
end

-- Return whether a worker has a lease that has not expired.
local function is_live(worker, time)
  return tonumber(redis.call('ZSCORE', WORKERS, worker) or RECLAIMED) > time
end

local function virtual_time()
  return tonumber(redis.call('HGET', META, 'virtual') or 0)
end

local function ready_member(task, tag, name)
  return task .. '\0' .. struct.pack('>d', tag) .. name
end

local function set_ready(task, name, tag)
  redis.call('ZADD', READY, 0, ready_member(task, tag, name))
end

-- Return whether a task of this type was ready.
local function clear_ready(task, name, tag)
  return redis.call('ZREM', READY, ready_member(task, tag, name)) == 1
end

-- Return the first tenants with a ready task of this type: {tag, name} of each.
local function first_ready(task, count)
  local found, prefix = {}, task .. '\0'
  for i, member in ipairs(redis.call('ZRANGEBYLEX', READY, '[' .. prefix, '(' .. task .. '\1', 'LIMIT', 0, count)) do
    local tag, at = struct.unpack('>d', member, #prefix + 1)
    found[i] = {tag = tag, name = member:sub(at)}
  end
  return found
end

local function set_tag(name, tenant, tag)
  for task in pairs(tenant.types) do
    if clear_ready(task, name, tenant.tag) then
      set_ready(task, name, tag)
    end
  end
  tenant.tag = tag
  changed_tenants[name] = true
end

-- The tag moves up to the virtual time: a tenant earns no credit while it is delayed.
local function wake(name, tenant, virtual)
  set_tag(name, tenant, math.max(virtual, tenant.tag))
  for task in pairs(tenant.types) do
    set_ready(task, name, tenant.tag)
  end
end

local function enter(key, lane, item, front)
  local tenant = record_of(lane.tenant)
  if not tenant then
    local tag = math.max(virtual_time(), tonumber(redis.call('ZSCORE', IDLE, lane.tenant) or 0))
    redis.call('ZREM', IDLE, lane.tenant)
    tenant = {tag = tag, turn = 0, cost = 0, types = {}}
    records[lane.tenant] = tenant
  end
  changed_tenants[lane.tenant] = true
  local kind = tenant.types[lane.task]
  local is_head = front or not kind or lane.rank < ranks_of(kind)[1]
  if is_head and redis.call('ZREM', DELAYED, lane.tenant) == 1 then -- the delay was computed for other heads
    wake(lane.tenant, tenant, virtual_time())
  end
  if not kind then
    tenant.turn = tenant.turn + 1
    kind = {turn = tenant.turn, lanes = {}}
    tenant.types[lane.task] = kind
    redis.call('HSETNX', TYPES, lane.task, '')
    set_ready(lane.task, lane.tenant, tenant.tag)
  end
  local length = redis.call(front and 'LPUSH' or 'RPUSH', key, pack_item(item))
  kind.lanes[lane.rank] = length
  tenant.cost = tenant.cost + item.cost
  growth = growth + 1
  return length
end

-- The caller has removed count items from the front of a lane: remove what is empty now.
local function pop_head(name, tenant, task, rank, count)
  local lanes = tenant.types[task].lanes
  lanes[rank] = lanes[rank] - count
  growth = growth - count
  if lanes[rank] <= 0 then
    lanes[rank] = nil
  end
  if next(lanes) == nil then
    tenant.types[task] = nil
    clear_ready(task, name, tenant.tag)
  end
  changed_tenants[name] = true
  if next(tenant.types) == nil then
    records[name] = false
    redis.call('ZREM', DELAYED, name)
    redis.call('ZADD', IDLE, tenant.tag, name)
  end
end

local function save()
  local fields = {}
  for name in pairs(changed_tenants) do
    if records[name] then
      fields[#fields + 1] = name
      fields[#fields + 1] = cmsgpack.pack(records[name])
      if #fields == 1000 then -- unpack() fails beyond some thousands
        redis.call('HSET', TENANTS, unpack(fields))
        fields = {}
      end
    else
      redis.call('HDEL', TENANTS, name)
    end
  end
  if #fields > 0 then
    redis.call('HSET', TENANTS, unpack(fields))
  end
  if growth ~= 0 then
    redis.call('HINCRBY', META, 'count', growth)
  end
end

-- Delete the state of a backlog without tasks. Return whether there are tasks.
local function reset_if_empty(queue)
  if tonumber(redis.call('HGET', META, 'count') or 0) > 0 then
    return true
  end
  redis.call('DEL', META, IDLE, POLLS, TYPES)
  redis.call('SREM', QUEUES, queue)
  return false
end

-- Return how many workers are expected to poll in time for a task that may start at ready_at.
local function expected_polls(ready_at, time)
  return redis.call('ZCOUNT', POLLS, time - POLL_GRACE, math.max(ready_at, time) + POLL_TOLERANCE)
end

-- Notify the workers of a task that may start at ready_at, unless a poll is expected or they were notified just before.
-- Mirrors Backlog.should_notify.
local function notify(ready_at, time, channel, queue)
  local notified_at = tonumber(redis.call('HGET', META, 'notified_at') or 0)
  if time - notified_at < NOTIFY_INTERVAL and time >= notified_at then
    return
  end
  if expected_polls(ready_at, time) == 0 then
    redis.call('HSET', META, 'notified_at', time)
    redis.call('PUBLISH', channel, queue)
  end
end
