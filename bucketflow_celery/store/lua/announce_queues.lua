-- announce_queues: record which queues a worker serves, and name those with parked tasks that no live worker serves.
-- KEYS     served (hash: worker -> its queues, as MessagePack), workers and queues (see backlog.lua), stranded (hash: queue
--          with parked tasks -> since when no live worker serves it and when it was reported last, as packed doubles in µs;
--          '' -> µs of the latest check)
-- ARGV     worker, then its queues; none if it ends
-- returns  {queues to report}
-- errors   none after the first write
-- mirrors  bucketflow_celery/scheduling/serving.py: ServedQueues.announce
local SERVED, WORKERS, QUEUES, STRANDED = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local time = now()
redis.call('HDEL', SERVED, ARGV[1]) -- the first write must not need memory: see dispatch.lua
if #ARGV > 1 then
  redis.call('HSET', SERVED, ARGV[1], cmsgpack.pack({unpack(ARGV, 2)}))
  redis.call('PEXPIRE', SERVED, DEDUP_TTL / 1000)
end
local checked_at = tonumber(redis.call('HGET', STRANDED, '') or 0)
if time >= checked_at and time - checked_at < CHECK_INTERVAL then
  return {}
end
local is_served, entries = {}, redis.call('HGETALL', SERVED)
for at = 1, #entries, 2 do
  if tonumber(redis.call('ZSCORE', WORKERS, entries[at]) or RECLAIMED) > time then
    for _, queue in ipairs(cmsgpack.unpack(entries[at + 1])) do
      is_served[queue] = true
    end
  else
    redis.call('HDEL', SERVED, entries[at])
  end
end
local found, reported, parked = {}, {}, redis.call('SMEMBERS', QUEUES)
table.sort(parked)
for _, queue in ipairs(parked) do
  if not is_served[queue] then
    local packed = redis.call('HGET', STRANDED, queue)
    local since, reported_at = struct.unpack('<dd', packed or struct.pack('<dd', time, 0))
    since = math.min(since, time)
    if time - since >= STRANDED_GRACE and (time < reported_at or time - reported_at >= REPORT_INTERVAL) then
      reported_at = time
      reported[#reported + 1] = queue
    end
    found[queue] = struct.pack('<dd', since, reported_at)
  end
end
redis.call('DEL', STRANDED)
redis.call('HSET', STRANDED, '', time)
for queue, packed in pairs(found) do
  redis.call('HSET', STRANDED, queue, packed)
end
redis.call('PEXPIRE', STRANDED, DEDUP_TTL / 1000)
return reported
