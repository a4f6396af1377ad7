-- peek: read levels.
-- KEYS[i]  the levels, one hash tag: see level.lua
-- ARGV     none
-- returns  {now µs, then full_at, reserved_until, capacity and fill_rate of each level ("%.17g")}
-- errors   none: nothing is written
-- mirrors  nothing: it only reads
local reply = {now()}
for _, key in ipairs(KEYS) do
  local full_at, reserved_until, capacity, fill_rate = level_of(redis.call('GET', key))
  for _, number in ipairs({full_at, reserved_until, capacity, fill_rate}) do
    reply[#reply + 1] = exact(number)
  end
end
return reply
