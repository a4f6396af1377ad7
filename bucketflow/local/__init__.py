"""What the in-process buckets share: locking, the lock-free fast path, waiting."""
