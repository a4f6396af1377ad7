"""
Token buckets for threads, for coroutines, in hierarchies and, through Redis, for fleets of processes.

The Redis buckets are in ``bucketflow.distributed``, which requires the ``redis`` package and is not imported here.
"""

from bucketflow.algorithm.gcra import Decision
from bucketflow.async_token_bucket import AsyncTokenBucket, async_rate_limit
from bucketflow.decorators import rate_limit
from bucketflow.errors import (
    BucketflowError,
    ConfigError,
    CostExceedsCapacity,
    NotPicklable,
    RateLimitExceeded,
    StoreAccessDenied,
    StoreFull,
    StoreUnavailable,
)
from bucketflow.hierarchical import HierarchicalTokenBucket, create_bucket_hierarchy
from bucketflow.limit import Limit
from bucketflow.token_bucket import TokenBucket

__all__ = [
    "AsyncTokenBucket",
    "BucketflowError",
    "ConfigError",
    "CostExceedsCapacity",
    "Decision",
    "HierarchicalTokenBucket",
    "Limit",
    "NotPicklable",
    "RateLimitExceeded",
    "StoreAccessDenied",
    "StoreFull",
    "StoreUnavailable",
    "TokenBucket",
    "async_rate_limit",
    "create_bucket_hierarchy",
    "rate_limit",
]

__version__ = "0.2.0"
