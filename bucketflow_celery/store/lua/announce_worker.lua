-- announce_worker: record that a worker runs with a configured table, and count the workers of late.
-- KEYS     tables (sorted set: digest of a table/worker -> µs at which that worker announced it last)
-- ARGV     digest, worker, µs for which an announcement counts
-- returns  {number of workers, then the digests that others have announced, each once, sorted}
-- errors   none after the first write
-- mirrors  nothing: it only stores a value
local time, ttl = now(), tonumber(ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', exact(time - ttl)) -- the first write must not need memory: see dispatch.lua
redis.call('ZADD', KEYS[1], time, ARGV[1] .. '/' .. ARGV[2])
redis.call('PEXPIRE', KEYS[1], math.ceil(ttl / 1000))
local workers, known, others = redis.call('ZRANGE', KEYS[1], 0, -1), {[ARGV[1]] = true}, {}
for _, member in ipairs(workers) do
  local digest = member:match('^[^/]*')
  if not known[digest] then
    known[digest] = true
    others[#others + 1] = digest
  end
end
table.sort(others)
return {#workers, unpack(others)}
