"""
Throttling for Celery: shared, hierarchical token buckets in Redis that every task must pass before it starts.

:class:`Throttle` is the entry point, :func:`throttled_task` the decorator for single tasks.
"""

from __future__ import annotations

from bucketflow.errors import (
    BucketflowError,
    ConfigError,
    CostExceedsCapacity,
    NotPicklable,
    StoreAccessDenied,
    StoreUnavailable,
)
from bucketflow.extras import explained

try:
    from bucketflow_celery.config.choices import OnLimit, OnStoreError
    from bucketflow_celery.config.limit import Limit
    from bucketflow_celery.decorator import throttled_task
    from bucketflow_celery.errors import ConfigErrors, LimitsChanged, ThrottleTimeout
    from bucketflow_celery.operations.backlog import QueueBacklog, TenantBacklog
    from bucketflow_celery.signals import task_throttled
    from bucketflow_celery.throttle import LevelView, Throttle
except ImportError as error:
    raise explained(error, "bucketflow_celery", "celery") from error

__all__ = [
    "BucketflowError",
    "ConfigError",
    "ConfigErrors",
    "CostExceedsCapacity",
    "LevelView",
    "Limit",
    "LimitsChanged",
    "NotPicklable",
    "OnLimit",
    "OnStoreError",
    "QueueBacklog",
    "StoreAccessDenied",
    "StoreUnavailable",
    "TenantBacklog",
    "Throttle",
    "ThrottleTimeout",
    "task_throttled",
    "throttled_task",
]
