-- lane_heads: read when the first task of each lane was parked.
-- KEYS     lanes, one hash tag
-- ARGV     none
-- returns  {for each lane: µs at which its first task was parked; 0 if there is none}
-- errors   none: nothing is written
-- mirrors  nothing: it only reads
local reply = {}
for i, key in ipairs(KEYS) do
  local packed = redis.call('LINDEX', key, 0)
  local _, since = struct.unpack('<Bd', packed or struct.pack('<Bd', 0, 0))
  reply[i] = since
end
return reply
