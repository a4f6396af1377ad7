"""``python -m benchmarks.library``: BucketFlow beside other rate limiters; writes ``docs/benchmarks.md``."""
