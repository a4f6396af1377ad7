-- announce_table: record that a worker runs with a configured table, and return the others of late.
-- KEYS     tables (sorted set: digest of a table -> µs at which a worker announced it last)
-- ARGV     digest, µs for which an announcement counts
-- returns  {the digests that other workers have announced, sorted}
-- errors   none after the first write
-- mirrors  nothing: it only stores a value
local time, ttl = now(), tonumber(ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', exact(time - ttl)) -- the first write must not need memory: see dispatch.lua
redis.call('ZADD', KEYS[1], time, ARGV[1])
redis.call('PEXPIRE', KEYS[1], math.ceil(ttl / 1000))
local others = {}
for _, digest in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  if digest ~= ARGV[1] then
    others[#others + 1] = digest
  end
end
table.sort(others)
return others
