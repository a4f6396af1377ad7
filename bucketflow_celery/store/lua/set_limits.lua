-- set_limits: replace the fleet's table of limits. It is configuration, so it does not expire.
-- KEYS     version, table, paused; one hash tag
-- ARGV     channel, table as JSON; empty to remove it
-- returns  1
-- errors   none after the first write
if ARGV[2] == '' then
  redis.call('DEL', KEYS[2])
else
  redis.call('SET', KEYS[2], ARGV[2])
end
announce(KEYS, ARGV[1])
return 1
