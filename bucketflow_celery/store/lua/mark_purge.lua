-- mark_purge: record that a purge ends the tasks that exist now, and notify every worker.
-- KEYS     version, table, paused, purges (sorted set: name of a mark -> its instant in µs); one hash tag
-- ARGV     channel, name
-- returns  1
-- errors   none after the first write
-- mirrors  nothing: it only stores a value
local time = now()
redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', exact(time - PURGE_TTL)) -- needs no memory: see dispatch.lua
redis.call('ZADD', KEYS[4], time, ARGV[2])
local dropped = redis.call('ZRANGE', KEYS[4], -MAX_PURGES - 1, -MAX_PURGES - 1, 'WITHSCORES')
if dropped[1] then
  redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', dropped[2])
end
redis.call('PEXPIRE', KEYS[4], PURGE_TTL / 1000)
announce(KEYS, ARGV[1], nil, exact(time))
return 1
