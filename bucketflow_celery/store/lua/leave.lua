-- leave: give back the place of a task that will not come; mirrors leave() in admission.py.
-- KEYS[i]  the levels where it had one, one hash tag: see under() in level.lua
-- ARGV     cost, then for each level: capacity, fill_rate, due µs
-- returns  how many lines got shorter
-- errors   none after the first write
local time = now()
local cost, left, latest = tonumber(ARGV[1]), 0, 0
for i = 1, #KEYS do
  latest = math.max(latest, tonumber(ARGV[3 * i + 1]))
end
for i, key in ipairs(KEYS) do
  local limit, due = limit_of(ARGV[3 * i - 1], ARGV[3 * i]), tonumber(ARGV[3 * i + 1])
  local full_at, line_at = under(limit, redis.call('GET', key), time)
  if due == latest and due > time and line_at > time then
    line_at = math.max(0, line_at - cost * SECOND / limit.fill_rate)
    redis.call('SET', key, pack(limit, full_at, line_at), 'PX', math.max(1, lifetime(full_at, line_at, time)))
    left = left + 1
  end
end
return left
