-- denied: try commands, and return those that the user may not run. What was stored is not touched.
-- KEYS     a key of its own: gone afterwards, or at the latest after a second
-- ARGV     channel, then the names of the commands
-- returns  {the names of those that the server's access control denies, in order}
-- errors   none after the first write
-- mirrors  nothing: only a server has access control
local key, denied = KEYS[1], {}
-- The key holds a string, so that the commands for other types end with an error and write nothing.
local arguments = {
  ['DEL'] = {key},
  ['EXISTS'] = {key},
  ['GET'] = {key},
  ['HDEL'] = {key, ''},
  ['HEXISTS'] = {key, ''},
  ['HGET'] = {key, ''},
  ['HGETALL'] = {key},
  ['HINCRBY'] = {key, '', 1},
  ['HMGET'] = {key, ''},
  ['HSET'] = {key, '', ''},
  ['HSETNX'] = {key, '', ''},
  ['LINDEX'] = {key, 0},
  ['LPOP'] = {key},
  ['LPUSH'] = {key, ''},
  ['MGET'] = {key},
  ['PEXPIRE'] = {key, 1000},
  ['PUBLISH'] = {ARGV[1], key}, -- no queue has this name, so no worker acts on it
  ['RPUSH'] = {key, ''},
  ['SADD'] = {key, ''},
  ['SET'] = {key, '', 'PX', 1000},
  ['SMEMBERS'] = {key},
  ['SREM'] = {key, ''},
  ['TIME'] = {},
  ['ZADD'] = {key, 0, ''},
  ['ZCARD'] = {key},
  ['ZCOUNT'] = {key, 0, 0},
  ['ZRANGE'] = {key, 0, 0},
  ['ZRANGEBYLEX'] = {key, '-', '+'},
  ['ZRANGEBYSCORE'] = {key, 0, 0},
  ['ZREM'] = {key, ''},
  ['ZREMRANGEBYSCORE'] = {key, 0, 0},
  ['ZSCORE'] = {key, ''},
  ['ZUNIONSTORE'] = {key, 1, key},
}

-- Return whether the command is allowed, and whether it succeeded.
local function try(name)
  local reply = redis.pcall(name, unpack(arguments[name]))
  local message = type(reply) == 'table' and reply.err
  if not message then
    return true, true
  end
  local is_denied = string.find(message, "executing the script can't", 1, true)
    or string.find(message, 'o permissions to', 1, true)
  return not is_denied, false
end

local is_allowed, is_set = try('SET')
if not is_set then
  return is_allowed and {} or {'SET'}
end
for i = 2, #ARGV do
  if not try(ARGV[i]) then
    denied[#denied + 1] = ARGV[i]
  end
end
redis.pcall('DEL', key)
return denied
