-- set_limits: replace the fleet's table of limits. It is configuration, so it does not expire.
-- KEYS     version, table; one hash tag
-- ARGV     version, table as JSON; both empty to remove it
-- returns  1
-- errors   none after the first write
if ARGV[1] == '' then
  redis.call('DEL', KEYS[1], KEYS[2])
else
  redis.call('MSET', KEYS[1], ARGV[1], KEYS[2], ARGV[2])
end
return 1
