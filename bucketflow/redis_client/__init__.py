"""Running a Lua script on Redis: encoding, connections, topology, batching. Independent of token buckets."""
