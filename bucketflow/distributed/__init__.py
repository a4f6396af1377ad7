"""
Token buckets in Redis, shared by any number of processes: one script call and one round trip for a whole path.

Install ``bucketflow[distributed]``.
"""

from bucketflow.extras import explained

try:
    from bucketflow.distributed.buckets import (
        AsyncRedisTokenBucket,
        RedisTokenBucket,
        create_async_redis_bucket_hierarchy,
        create_redis_bucket_hierarchy,
    )
except ImportError as error:
    raise explained(error, "bucketflow.distributed", "distributed") from error

__all__ = [
    "AsyncRedisTokenBucket",
    "RedisTokenBucket",
    "create_async_redis_bucket_hierarchy",
    "create_redis_bucket_hierarchy",
]
