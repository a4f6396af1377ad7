-- settle: apply what became of tasks that were dispatched to a worker.
-- KEYS     see backlog.lua (owned: of the worker that holds the tasks), then lanes and levels
-- ARGV     queue, channel, worker that holds the tasks, 1 if they are reclaimed because its lease expired;
--          how many have ended, and their uids; how many the broker has acknowledged, and their uids;
--          how many return to the front of their lane, and for each: uid, index of its lane, 1 if it may have started;
--          then for each task that is refunded: cost, tenant, by how much its dispatch moved the tag of the tenant, how many
--          levels, and for each: index in KEYS
-- returns  {1, how many returned}; {0, 0} if the lease has not expired
-- errors   none after the first write
-- mirrors  bucketflow_celery/scheduling/leases.py: settle
local time = now()
local queue, channel, worker, reclaims = ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '1'
if reclaims then
  if is_live(worker, time) then
    return {0, 0}
  end
  redis.call('ZREM', POLLS, worker)
  redis.call('ZADD', WORKERS, RECLAIMED, worker)
end
redis.call('HDEL', OWNED, '') -- the first write must not need memory: see dispatch.lua

local word, number, has_more = reader(5)

for _ = 1, number() do
  local uid = word()
  if redis.call('HDEL', OWNED, uid) == 1 then -- else it was reclaimed, and belongs to another worker
    redis.call('HDEL', MESSAGES, uid)
  end
end
for _ = 1, number() do
  redis.call('ZREM', DEDUP, word())
end
local returned = 0
for _ = 1, number() do
  local uid, key, may_have_started = word(), KEYS[number()], word() == '1'
  local packed = redis.call('HGET', OWNED, uid)
  if packed then
    redis.call('HDEL', OWNED, uid)
    local owned = cmsgpack.unpack(packed)
    local item = item_of(owned[5])
    if may_have_started then
      item.redelivered = 1
    end
    enter(key, {tenant = owned[2], task = owned[3], rank = owned[4]}, item, true)
    returned = returned + 1
  end
end
if returned > 0 then
  redis.call('SADD', QUEUES, queue)
  notify(time, time, channel, queue)
end
local function refund_turn(name, share) -- mirrors Backlog.refund_turn
  local virtual, tenant = virtual_time(), record_of(name)
  local tag = tenant and tenant.tag or tonumber(redis.call('ZSCORE', IDLE, name) or nil)
  local refunded = tag and math.max(tag - share, math.min(tag, virtual))
  if tenant then
    set_tag(name, tenant, refunded)
  elseif tag then
    redis.call('ZADD', IDLE, refunded, name)
  end
end
while has_more() do -- mirrors refund_path in backlog.py
  local cost, tenant, share = number(), word(), number()
  refund_turn(tenant, share)
  for _ = 1, number() do
    local key = KEYS[number()]
    local full_at, reserved_until, capacity, fill_rate, debt = level_of(redis.call('GET', key))
    if full_at > time or debt then -- under the stored limit: another may be in force since the tokens were taken
      local limit = {capacity = capacity, fill_rate = fill_rate}
      if full_at > time then
        full_at = refund(limit, full_at, time, cost)
      end
      if debt and debt.at > time then
        debt.at = math.max(time, debt.at - cost * SECOND / debt.rate)
      end
      write_level(key, limit, full_at, reserved_until, time, debt)
    end
  end
end
save()
if reclaims and redis.call('EXISTS', OWNED) == 0 then
  redis.call('ZREM', WORKERS, worker)
end
return {1, returned}
