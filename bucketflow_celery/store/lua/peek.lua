-- peek: read levels.
-- KEYS[i]  the levels, one hash tag: see level.lua
-- ARGV     none
-- returns  {now µs, then full_at, reserved_until, capacity, fill_rate, debt_at and debt_rate of each level ("%.17g")}
-- errors   none: nothing is written
-- mirrors  nothing: it only reads
local reply = {now()}
for _, key in ipairs(KEYS) do
  local full_at, reserved_until, capacity, fill_rate, debt = level_of(redis.call('GET', key))
  debt = debt or {at = 0, rate = 0}
  for _, number in ipairs({full_at, reserved_until, capacity, fill_rate, debt.at, debt.rate}) do
    reply[#reply + 1] = exact(number)
  end
end
return reply
