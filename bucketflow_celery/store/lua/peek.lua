-- peek: look at levels without touching them.
-- KEYS[i]  the levels, one hash tag: see rebased_on() in level.lua
-- ARGV     none
-- returns  {now µs, then full_at, reserved_until, capacity and fill_rate of each level ("%.17g")}
-- errors   none: nothing is written
local reply = { now() }
for _, key in ipairs(KEYS) do
  local stored = redis.call('GET', key)
  for _, number in ipairs(stored and #stored == 32 and { struct.unpack('<dddd', stored) } or { FULL, 0, 0, 0, 1 }) do
    reply[#reply + 1] = string.format('%.17g', number)
  end
  reply[#reply] = nil -- unpack also returns where it stopped
end
return reply
