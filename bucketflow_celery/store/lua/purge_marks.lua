-- purge_marks: read the purge marks.
-- KEYS     purges: see mark_purge.lua
-- ARGV     none
-- returns  {now µs, then of each mark: name, instant µs}
-- errors   none: nothing is written
-- mirrors  nothing: it only reads
return {now(), unpack(redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES'))}
