-- move: move the first tasks of one lane to the end of the same lane of another queue's backlog.
-- KEYS     of the queue, see backlog.lua; likewise of the other queue; the lane in the one and in the other
-- ARGV     queue, the other queue, channel, tenant, task, rank; then for each task: uid, message as it is kept from now on. It
--          ends where the lane has another task by now
-- returns  how many were moved
-- errors   none after the first write
-- mirrors  bucketflow_celery/scheduling/move.py: move
local queue, other, channel = ARGV[1], ARGV[2], ARGV[3]
local lane = {tenant = ARGV[4], task = ARGV[5], rank = tonumber(ARGV[6])}
local time, count = now(), #KEYS / 2 - 1
local source, target = KEYS[#KEYS - 1], KEYS[#KEYS]

local moved, tenant = {}, record_of(lane.tenant)
local kind = tenant and tenant.types[lane.task]
if not kind or not kind.lanes[lane.rank] then
  return 0
end
for at = 7, #ARGV, 2 do
  local packed = redis.call('LINDEX', source, 0)
  if not packed or item_of(packed).uid ~= ARGV[at] then
    break
  end
  redis.call('LPOP', source)
  redis.call('HDEL', MESSAGES, ARGV[at])
  moved[#moved + 1] = {item = item_of(packed), message = ARGV[at + 1]}
end
if #moved == 0 then
  return 0
end
for _, one in ipairs(moved) do
  tenant.cost = tenant.cost - one.item.cost
  pop_head(lane.tenant, tenant, lane.task, lane.rank, 1)
end
save()
reset_if_empty(queue)

-- From here on, the functions of backlog.lua work on the other queue.
VERSION, MESSAGES, TENANTS, READY, DELAYED = unpack(KEYS, count + 1, count + 5)
IDLE, POLLS, DEDUP, META, OWNED, WORKERS = unpack(KEYS, count + 6, count + 11)
QUEUES, TYPES = unpack(KEYS, count + 12, count + 13)
records, changed_tenants, growth = {}, {}, 0
for _, one in ipairs(moved) do
  redis.call('HSET', MESSAGES, one.item.uid, one.message)
  enter(target, lane, one.item, false)
end
save()
redis.call('SADD', QUEUES, other)
notify(time, time, channel, other)
return #moved
