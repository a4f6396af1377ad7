-- lane_page: read the first tasks of one lane, with their messages.
-- KEYS     see backlog.lua, then the lane
-- ARGV     most tasks to read, bytes of messages after which no further one is read
-- returns  {for each task: uid, message}
-- errors   none: nothing is written
-- mirrors  nothing: it only reads
local reply, size = {}, 0
for at = 0, tonumber(ARGV[1]) - 1 do
  local packed = redis.call('LINDEX', KEYS[14], at)
  if not packed or size >= tonumber(ARGV[2]) then
    break
  end
  local uid = item_of(packed).uid
  local message = redis.call('HGET', MESSAGES, uid) or ''
  size = size + #message
  reply[#reply + 1] = uid
  reply[#reply + 1] = message
end
return reply
