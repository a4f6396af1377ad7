-- renew_lease: renew the lease of a worker, and name workers whose lease has expired.
-- KEYS     workers, see backlog.lua
-- ARGV     worker, µs until the lease expires
-- returns  {1 if the worker had a lease | 0, up to MAX_EXPIRED workers whose lease has expired}
-- errors   none after the first write
-- mirrors  bucketflow_celery/scheduling/leases.py: Leases.renew
local time = now()
local expires_at = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0)
local reply = {expires_at > 0 and 1 or 0}
if expires_at >= 0 then
  redis.call('ZREM', KEYS[1], '') -- the first write must not need memory: see dispatch.lua
  redis.call('ZADD', KEYS[1], time + tonumber(ARGV[2]), ARGV[1])
end
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', time, 'LIMIT', 0, MAX_EXPIRED)) do
  reply[#reply + 1] = worker
end
return reply
