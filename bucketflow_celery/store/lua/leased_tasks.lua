-- leased_tasks: read the dispatched tasks that a worker has not settled.
-- KEYS     owned, see backlog.lua
-- ARGV     none
-- returns  {for each task: uid, queue, tenant, task, rank, µs at which it was parked}
-- errors   none: nothing is written
-- mirrors  nothing: it only reads
local reply, entries = {}, redis.call('HGETALL', KEYS[1])
for at = 1, #entries, 2 do
  local owned = cmsgpack.unpack(entries[at + 1])
  local _, since = struct.unpack('<Bd', owned[5])
  reply[#reply + 1] = {entries[at], owned[1], owned[2], owned[3], owned[4], since}
end
return reply
