-- backlog: what the operations on the backlog of one queue share, behind level.lua; mirrors backlog.py.
-- KEYS[1..12] are the same for all of them, one hash tag:
--   version      of the limits
--   messages     hash: uid -> message
--   tenants      hash: tenant -> {tag, turn, cost, types = {task -> {turn, lanes = {rank -> length}}}}, as MessagePack
--   ready        sorted set: tenant -> tag
--   delayed       sorted set: tenant -> µs at which it wakes
--   idle      sorted set: tenant without tasks -> tag, until the virtual time has passed it
--   polls        sorted set: worker -> µs at which it comes again
--   dedup  sorted set: uid -> µs when it was parked, until the broker has forgotten its copy
--   meta         hash: virtual time, count, notified_at, version of the limits under which the tenants fell delayed
--   owned        hash of the worker that calls: uid -> {queue, tenant, task, rank, item}, as MessagePack
--   workers      sorted set: worker -> µs until which it is alive; -1: its tasks are being taken back
--   queues       set: in which queues something is parked
-- A lane is a list of items, an item the packed doubles since, cost and deadline behind one byte, then the uid.
local VERSION, MESSAGES, TENANTS, READY, DELAYED = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local IDLE, POLLS, DEDUP, META, OWNED, WORKERS = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local QUEUES = KEYS[12]
local PAUSE = 60 * SECOND
local POLL_GRACE = 50000
local TOLERANCE = 10000
local NOTIFY_INTERVAL = 20000
local WORKERS_PER_POLL = 2
local MOST = 128
local SPARE = 4

local function item_of(packed)
  local redelivered, since, cost, deadline, at = struct.unpack('<Bddd', packed)
  return { redelivered = redelivered, since = since, cost = cost, deadline = deadline, uid = packed:sub(at) }
end

local function pack_item(item)
  return struct.pack('<Bddd', item.redelivered, item.since, item.cost, item.deadline) .. item.uid
end

-- What is read of tenants and changed: save() writes it, all at once.
local records, touched, grown = {}, {}, 0

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
    read_records({ name })
  end
  return records[name]
end

local function turns_of(tenant)
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

local function virtual_time()
  return tonumber(redis.call('HGET', META, 'virtual') or 0)
end

-- Who slept catches up nothing.
local function wake(name, tenant, virtual)
  tenant.tag = math.max(virtual, tenant.tag)
  touched[name] = true
  redis.call('ZADD', READY, tenant.tag, name)
end

local function enter(key, lane, item, front)
  local tenant = record_of(lane.tenant)
  if not tenant then
    local tag = math.max(virtual_time(), tonumber(redis.call('ZSCORE', IDLE, lane.tenant) or 0))
    redis.call('ZREM', IDLE, lane.tenant)
    tenant = { tag = tag, turn = 0, cost = 0, types = {} }
    records[lane.tenant] = tenant
    redis.call('ZADD', READY, tag, lane.tenant)
  end
  touched[lane.tenant] = true
  local kind = tenant.types[lane.task]
  local first = front or not kind or lane.rank < ranks_of(kind)[1]
  if first and redis.call('ZREM', DELAYED, lane.tenant) == 1 then -- it sleeps because of others than this one
    wake(lane.tenant, tenant, virtual_time())
  end
  if not kind then
    tenant.turn = tenant.turn + 1
    kind = { turn = tenant.turn, lanes = {} }
    tenant.types[lane.task] = kind
  end
  local length = redis.call(front and 'LPUSH' or 'RPUSH', key, pack_item(item))
  kind.lanes[lane.rank] = length
  tenant.cost = tenant.cost + item.cost
  grown = grown + 1
  return length
end

-- A lane has lost so many items: forget what is empty now.
local function pop_head(name, tenant, task, rank, by)
  local lanes = tenant.types[task].lanes
  lanes[rank] = lanes[rank] - by
  grown = grown - by
  if lanes[rank] <= 0 then
    lanes[rank] = nil
  end
  if next(lanes) == nil then
    tenant.types[task] = nil
  end
  touched[name] = true
  if next(tenant.types) == nil then
    records[name] = false
    redis.call('ZREM', READY, name)
    redis.call('ZREM', DELAYED, name)
    redis.call('ZADD', IDLE, tenant.tag, name)
  end
end

local function save()
  local there = {}
  for name in pairs(touched) do
    if records[name] then
      there[#there + 1] = name
      there[#there + 1] = cmsgpack.pack(records[name])
      if #there == 1000 then -- unpack() fails beyond some thousands
        redis.call('HSET', TENANTS, unpack(there))
        there = {}
      end
    else
      redis.call('HDEL', TENANTS, name)
    end
  end
  if #there > 0 then
    redis.call('HSET', TENANTS, unpack(there))
  end
  if grown ~= 0 then
    redis.call('HINCRBY', META, 'count', grown)
  end
end

-- Forget everything once there is nothing; returns whether there is something.
local function reset_if_empty(queue)
  if tonumber(redis.call('HGET', META, 'count') or 0) > 0 then
    return true
  end
  redis.call('DEL', META, IDLE, POLLS)
  redis.call('SREM', QUEUES, queue)
  return false
end

-- How many workers come in time for what can be dispatched out at ready_at.
local function expected_polls(ready_at, time)
  return redis.call('ZCOUNT', POLLS, time - POLL_GRACE, math.max(ready_at, time) + TOLERANCE)
end

-- Call a worker for what can be dispatched out at ready_at, unless one comes in time or has been called a moment ago.
local function call(ready_at, time, channel, queue)
  local notified_at = tonumber(redis.call('HGET', META, 'notified_at') or 0)
  if time - notified_at < NOTIFY_INTERVAL and time >= notified_at then
    return
  end
  if expected_polls(ready_at, time) == 0 then
    redis.call('HSET', META, 'notified_at', time)
    redis.call('PUBLISH', channel, queue)
  end
end
