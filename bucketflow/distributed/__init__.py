"""
Token buckets that a fleet shares through Redis: the server's clock, one script and one round trip a path.

Install ``bucketflow[distributed]``.
"""

from bucketflow.distributed.buckets import (
    AsyncRedisTokenBucket,
    RedisTokenBucket,
    create_async_redis_bucket_hierarchy,
    create_redis_bucket_hierarchy,
)

__all__ = [
    "AsyncRedisTokenBucket",
    "RedisTokenBucket",
    "create_async_redis_bucket_hierarchy",
    "create_redis_bucket_hierarchy",
]
