"""
Token bucket arithmetic, wait queues and token leases.

Pure: no clock, no lock, no I/O. Functions take the time and return the new state, or change only the object they
belong to. ``bucketflow/lua`` mirrors the arithmetic and the leases for Redis.
"""
