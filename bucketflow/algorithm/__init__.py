"""Pure token-bucket arithmetic and wait queues: no clock, no lock, no I/O. ``bucketflow/lua`` mirrors it for Redis."""
