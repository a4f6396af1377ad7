-- cancel_reservation: give back the place of a task that will not come; mirrors leave() in admission.py.
-- KEYS[i]  the levels where it had one, one hash tag: see rebased_on() in level.lua
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
  local full_at, reserved_until = rebased_on(limit, redis.call('GET', key), time)
  if due == latest and due > time and reserved_until > time then
    reserved_until = math.max(0, reserved_until - cost * SECOND / limit.fill_rate)
    redis.call('SET', key, pack(limit, full_at, reserved_until), 'PX', math.max(1, lifetime(full_at, reserved_until, time)))
    left = left + 1
  end
end
return left
