-- renew_lease: say that a worker is alive, and learn who is not; mirrors Backlogs.renew in backlogs.py.
-- KEYS     workers, see backlog.lua
-- ARGV     worker, µs for which it is taken to be alive from now on
-- returns  {1 if its tasks are still its own | 0, up to 16 workers that are dead}
-- errors   none after the first write
local time = now()
local alive_until = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0)
local reply = { alive_until > 0 and 1 or 0 }
if alive_until >= 0 then
  redis.call('ZREM', KEYS[1], '') -- needs no memory: see dispatch.lua
  redis.call('ZADD', KEYS[1], time + tonumber(ARGV[2]), ARGV[1])
end
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', time, 'LIMIT', 0, 16)) do
  reply[#reply + 1] = worker
end
return reply
