-- cancel_reservation: cancel the reservations of a task that will not come back.
-- KEYS[i]  the levels at which it has one, one hash tag
-- ARGV     cost, then for each level: capacity, fill_rate, reservation in µs
-- returns  at how many levels the reserved time became shorter
-- errors   none after the first write
-- mirrors  bucketflow_celery/scheduling/admit.py: cancel_reservation
local time = now()
local cost, shortened, latest = tonumber(ARGV[1]), 0, 0
for i = 1, #KEYS do
  latest = math.max(latest, tonumber(ARGV[3 * i + 1]))
end
for i, key in ipairs(KEYS) do
  local limit, reservation = limit_of(ARGV[3 * i - 1], ARGV[3 * i]), tonumber(ARGV[3 * i + 1])
  local full_at, reserved_until, _, debt = rebased_on(limit, redis.call('GET', key), time)
  if reservation == latest and reservation > time and reserved_until > time then
    reserved_until = math.max(0, reserved_until - cost * SECOND / limit.fill_rate)
    write_level(key, limit, full_at, reserved_until, time, debt)
    shortened = shortened + 1
  end
end
return shortened
