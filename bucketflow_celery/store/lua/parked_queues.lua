-- parked_queues: in which queues something is parked.
-- KEYS     the backlogs' names
-- ARGV     none
-- returns  {queues}
-- errors   none: nothing is written
return redis.call('SMEMBERS', KEYS[1])
