-- leave: give back the place of a task that will not come; mirrors leave() in admission.py.
-- KEYS[i]  the levels where it had one, one hash tag: struct "<dd" of full_at and line_at in µs
-- ARGV     cost, then for each level: fill_rate, due µs
-- returns  how many lines got shorter
-- errors   none after the first write
local PATIENCE = 2 * SECOND

local time = now()
local cost, left, latest = tonumber(ARGV[1]), 0, 0
for i = 1, #KEYS do
  latest = math.max(latest, tonumber(ARGV[2 * i + 1]))
end
for i, key in ipairs(KEYS) do
  local fill_rate, due = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
  local stored = redis.call('GET', key)
  if stored and due == latest and due > time then
    local full_at, line_at = struct.unpack('<dd', stored)
    if line_at > time then
      line_at = math.max(0, line_at - cost * SECOND / fill_rate)
      local ttl = math.max(1, math.ceil((math.max(full_at, line_at) + PATIENCE - time) / 1000))
      redis.call('SET', key, struct.pack('<dd', full_at, line_at), 'PX', ttl)
      left = left + 1
    end
  end
end
return left
