-- limits: read what the whole fleet was told.
-- KEYS     version, table, paused; one hash tag
-- ARGV     none
-- returns  {version, table as JSON, names of what is paused}; version and table empty if none was set
-- errors   none: nothing is written
return { redis.call('GET', KEYS[1]) or '', redis.call('GET', KEYS[2]) or '', unpack(redis.call('SMEMBERS', KEYS[3])) }
