-- settle: what became of tasks that were dispatched out; mirrors Backlogs.settle in backlogs.py.
-- KEYS     see backlog.lua (owned: of the worker whose tasks they are), then lanes and levels
-- ARGV     queue, channel, worker whose tasks they are, 1 if they are taken from it because it is dead;
--          how many have ended, and their uids; how many the broker has forgotten, and their uids;
--          how many go back to the front of their line, and for each: uid, index of its lane, 1 if it may have started;
--          then for each task whose tokens go back: cost, how many levels, and for each: index in KEYS
-- returns  {1, how many went back}; {0, 0} if the worker is not dead
-- errors   none after the first write
local time = now()
local queue, channel, worker, is_dead = ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '1'
if is_dead then
  if tonumber(redis.call('ZSCORE', WORKERS, worker) or -1) > time then
    return { 0, 0 }
  end
  redis.call('ZREM', POLLS, worker)
  redis.call('ZADD', WORKERS, -1, worker)
end
redis.call('HDEL', OWNED, '') -- needs no memory: see dispatch.lua

local at = 5
local function argument()
  at = at + 1
  return ARGV[at - 1]
end
local function number()
  return tonumber(argument())
end

for _ = 1, number() do
  local uid = argument()
  if redis.call('HDEL', OWNED, uid) == 1 then -- else it was taken from the worker, and is another's now
    redis.call('HDEL', MESSAGES, uid)
  end
end
for _ = 1, number() do
  redis.call('ZREM', DEDUP, argument())
end
local returned = 0
for _ = 1, number() do
  local uid, key, may_have_started = argument(), KEYS[number()], argument() == '1'
  local packed = redis.call('HGET', OWNED, uid)
  if packed then
    redis.call('HDEL', OWNED, uid)
    local owned = cmsgpack.unpack(packed)
    local item = item_of(owned[5])
    if may_have_started then
      item.redelivered = 1
    end
    enter(key, { tenant = owned[2], task = owned[3], rank = owned[4] }, item, true)
    returned = returned + 1
  end
end
if returned > 0 then
  save()
  redis.call('SADD', QUEUES, queue)
  call(time, time, channel, queue)
end
while at <= #ARGV do
  local cost = number()
  for _ = 1, number() do
    local key = KEYS[number()]
    local stored = redis.call('GET', key)
    local full_at, reserved_until, capacity, fill_rate = FULL, 0, 0, 0
    if stored and #stored == 32 then
      full_at, reserved_until, capacity, fill_rate = struct.unpack('<dddd', stored)
    end
    if full_at > time then -- under the limit they were last reckoned under: it may have changed since they were taken
      local limit = limit_of(capacity, fill_rate)
      full_at = refund(limit, full_at, time, cost)
      redis.call('SET', key, pack(limit, full_at, reserved_until), 'PX', math.max(1, lifetime(full_at, reserved_until, time)))
    end
  end
end
if is_dead and redis.call('EXISTS', OWNED) == 0 then
  redis.call('ZREM', WORKERS, worker)
end
return { 1, returned }
