-- backlog_view: read the lanes and costs of every tenant with parked tasks in one queue.
-- KEYS     see backlog.lua, then served, see announce_queues.lua
-- ARGV     queue
-- returns  {now µs, {for each tenant: name, cost of its tasks ("%.17g"), {for each lane: task, rank, length}}, {parked task
--          types that no live worker can run}, 1 if a live worker serves the queue | 0}
-- errors   none: nothing is written
-- mirrors  nothing: it only reads
local time, unclaimed, claims = now(), {}, redis.call('HGETALL', TYPES)
for at = 1, #claims, 2 do
  if not is_live(claims[at + 1], time) and first_ready(claims[at], 1)[1] then
    unclaimed[#unclaimed + 1] = claims[at]
  end
end
local tenants, entries = {}, redis.call('HGETALL', TENANTS)
for at = 1, #entries, 2 do
  local tenant, lanes = cmsgpack.unpack(entries[at + 1]), {}
  for _, task in ipairs(service_order(tenant)) do
    for _, rank in ipairs(ranks_of(tenant.types[task])) do
      lanes[#lanes + 1] = {task, rank, tenant.types[task].lanes[rank]}
    end
  end
  tenants[#tenants + 1] = {entries[at], exact(tenant.cost), lanes}
end
local is_served, announced = 0, redis.call('HGETALL', KEYS[14])
for at = 1, #announced, 2 do
  if is_served == 0 and is_live(announced[at], time) then
    for _, queue in ipairs(cmsgpack.unpack(announced[at + 1])) do
      is_served = queue == ARGV[1] and 1 or is_served
    end
  end
end
return {time, tenants, unclaimed, is_served}
