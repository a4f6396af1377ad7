"""Common parts of the in-process buckets: state, locks and the lock-free fast path."""
