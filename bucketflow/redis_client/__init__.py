"""How a script reaches Redis: encoding, connections, topology, batching. Knows nothing of buckets."""
