-- park: park refused tasks, each at the end of its lane.
-- KEYS     see backlog.lua, then each lane
-- ARGV     queue, channel, most tasks the backlog holds, 1 if the worker has no free slot; then for each task: uid, index of
--          its lane in KEYS, tenant, task, rank, cost, µs until its deadline (0 = none), 1 if it is redelivered, message
-- returns  {for each task: its position in its lane, 0 if it is parked already, -1 if the backlog is full}
-- errors   none after the first write
-- mirrors  bucketflow_celery/scheduling/backlog.py: Backlog.park
local time = now()
local limit, busy = tonumber(ARGV[3]), ARGV[4] == '1'
local count = tonumber(redis.call('HGET', META, 'count') or 0)
local positions, stored = {}, 0
for at = 5, #ARGV, 9 do
  local uid, key = ARGV[at], KEYS[tonumber(ARGV[at + 1])]
  local lane = {tenant = ARGV[at + 2], task = ARGV[at + 3], rank = tonumber(ARGV[at + 4])}
  local max_wait = tonumber(ARGV[at + 6])
  if redis.call('HEXISTS', MESSAGES, uid) == 1 or redis.call('ZSCORE', DEDUP, uid) then
    positions[#positions + 1] = 0
  elseif count >= limit then
    positions[#positions + 1] = -1
  else
    redis.call('HSET', MESSAGES, uid, ARGV[at + 8])
    redis.call('ZADD', DEDUP, time, uid)
    positions[#positions + 1] = enter(key, lane, {
      uid = uid,
      since = time + stored,
      cost = tonumber(ARGV[at + 5]),
      deadline = max_wait > 0 and time + max_wait or 0,
      redelivered = tonumber(ARGV[at + 7]),
    }, false)
    count = count + 1
    stored = stored + 1
  end
end
if stored > 0 then
  save()
  redis.call('SADD', QUEUES, ARGV[1])
  redis.call('ZREMRANGEBYSCORE', DEDUP, '-inf', time - DEDUP_TTL)
  redis.call('PEXPIRE', DEDUP, DEDUP_TTL / 1000)
  if busy then
    notify(time, time, ARGV[2], ARGV[1])
  end
end
return positions
