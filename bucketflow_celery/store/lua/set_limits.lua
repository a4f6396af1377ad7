-- set_limits: replace the fleet's table of limits. The table is configuration, so its key has no expiry.
-- KEYS     version, table, paused; one hash tag
-- ARGV     channel, table as JSON (empty to remove it), version that must be in force (* = any)
-- returns  {} | {version in force}, if it is another one
-- errors   none after the first write
-- mirrors  nothing: it only stores a value
local version = redis.call('GET', KEYS[1]) or ''
if ARGV[3] ~= '*' and ARGV[3] ~= version then
  return {version}
end
redis.call('DEL', KEYS[1]) -- the first write must not need memory: see dispatch.lua
if ARGV[2] == '' then
  redis.call('DEL', KEYS[2])
else
  redis.call('SET', KEYS[2], ARGV[2])
end
announce(KEYS, ARGV[1], version)
return {}
