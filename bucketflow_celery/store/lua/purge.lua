-- purge: delete parked tasks from the front of one lane.
-- KEYS     see backlog.lua, then the lane
-- ARGV     queue, tenant, task, rank, most tasks to delete in one call
-- returns  how many were deleted
-- errors   none after the first write
-- mirrors  bucketflow_celery/scheduling/backlog.py: Backlog.purge
local name, task, rank = ARGV[2], ARGV[3], tonumber(ARGV[4])
local tenant = record_of(name)
local kind = tenant and tenant.types[task]
if not kind or not kind.lanes[rank] then
  return 0
end
local deleted = redis.call('LPOP', KEYS[14], ARGV[5]) or {}
for _, packed in ipairs(deleted) do
  local item = item_of(packed)
  redis.call('HDEL', MESSAGES, item.uid)
  tenant.cost = tenant.cost - item.cost
end
-- A lane that was deleted or evicted leaves only its length in the record.
pop_head(name, tenant, task, rank, #deleted > 0 and #deleted or kind.lanes[rank])
save()
reset_if_empty(ARGV[1])
return #deleted
