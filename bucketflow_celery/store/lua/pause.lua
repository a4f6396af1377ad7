-- pause: pause or resume one name in the whole fleet. A pause is configuration, so its key has no expiry.
-- KEYS     version, table, paused; one hash tag
-- ARGV     channel, 1 to pause | 0 to resume, name
-- returns  1 if that is new | 0
-- errors   none after the first write
-- mirrors  nothing: it only stores a value
redis.call('SREM', KEYS[3], '') -- the first write must not need memory: see dispatch.lua
local changed = redis.call(ARGV[2] == '1' and 'SADD' or 'SREM', KEYS[3], ARGV[3])
announce(KEYS, ARGV[1])
return changed
