-- limits: read the fleet's limits and pauses.
-- KEYS     version, table, paused; one hash tag
-- ARGV     none
-- returns  {version, table as JSON, names of what is paused}; version and table are empty if nothing was set
-- errors   none: nothing is written
-- mirrors  nothing: it only reads
return {redis.call('GET', KEYS[1]) or '', redis.call('GET', KEYS[2]) or '', unpack(redis.call('SMEMBERS', KEYS[3]))}
