-- limits: read the fleet's table of limits.
-- KEYS     version, table; one hash tag
-- ARGV     none
-- returns  {version, table as JSON}; both empty if none was set
-- errors   none: nothing is written
return { redis.call('GET', KEYS[1]) or '', redis.call('GET', KEYS[2]) or '' }
