-- parked_queues: read which queues have parked tasks.
-- KEYS     queues, see backlog.lua
-- ARGV     none
-- returns  {queues}
-- errors   none: nothing is written
-- mirrors  nothing: it only reads
return redis.call('SMEMBERS', KEYS[1])
