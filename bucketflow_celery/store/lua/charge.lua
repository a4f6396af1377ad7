-- charge: take the tokens that were granted elsewhere, or all that a bucket has.
-- KEYS[i]  levels, one hash tag
-- ARGV     for each level: capacity, fill_rate, tokens
-- returns  1
-- errors   none after the first write
-- mirrors  bucketflow_celery/scheduling/admit.py: charge
local time = now()
for i, key in ipairs(KEYS) do
  local limit = limit_of(ARGV[3 * i - 2], ARGV[3 * i - 1])
  local full_at, reserved_until, _, debt = rebased_on(limit, redis.call('GET', key), time)
  local cost = math.min(tonumber(ARGV[3 * i]), tokens_at(limit, full_at, time))
  write_level(key, limit, take(limit, full_at, time, cost), reserved_until, time, debt and owe(debt, time, cost))
end
return 1
