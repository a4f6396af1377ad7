"""Common parts of the in-process buckets: locking, the lock-free fast path and waiting."""
