-- peek: look at levels without touching them.
-- KEYS[i]  the levels, one hash tag: struct "<dd" of full_at and line_at in µs
-- ARGV     none
-- returns  {now µs, then full_at and line_at of each level ("%.17g")}
-- errors   none: nothing is written
local reply = { now() }
for _, key in ipairs(KEYS) do
  local stored = redis.call('GET', key)
  local full_at, line_at = FULL, 0
  if stored then
    full_at, line_at = struct.unpack('<dd', stored)
  end
  reply[#reply + 1] = string.format('%.17g', full_at)
  reply[#reply + 1] = string.format('%.17g', line_at)
end
return reply
