-- purge: forget parked tasks of one lane; mirrors Backlog.purge in backlog.py.
-- KEYS     see backlog.lua, then the lane
-- ARGV     queue, tenant, task, rank, most tasks forgotten by one call
-- returns  how many were forgotten
-- errors   none after the first write
local name, task, rank = ARGV[2], ARGV[3], tonumber(ARGV[4])
local tenant = record_of(name)
local kind = tenant and tenant.types[task]
if not kind or not kind.lanes[rank] then
  return 0
end
local forgotten = redis.call('LPOP', KEYS[13], ARGV[5]) or {}
for _, packed in ipairs(forgotten) do
  local item = item_of(packed)
  redis.call('HDEL', MESSAGES, item.uid)
  tenant.cost = tenant.cost - item.cost
end
pop_head(name, tenant, task, rank, #forgotten > 0 and #forgotten or kind.lanes[rank])
save()
reset_if_empty(ARGV[1])
return #forgotten
