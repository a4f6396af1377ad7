"""Everything bucketflow raises on purpose: two refusals, one outage, one mistake.

Each error carries its facts as attributes, and passes them to ``Exception`` so that it survives pickling and the
JSON form in which Celery's result backends keep it.
"""

from __future__ import annotations

__all__ = ["BucketflowError", "ConfigError", "CostExceedsCapacity", "RateLimitExceeded", "StoreUnavailable"]


class BucketflowError(Exception):
    """The root of the tree."""


class RateLimitExceeded(BucketflowError):
    """Not now: the tokens are not there yet.

    Attributes:
        key: The bucket, function or level that refused.
        cost: Tokens asked for.
        retry_after: Seconds until the same question would be granted, if nobody else takes tokens meanwhile.
    """

    def __init__(self, key: str, cost: float, retry_after: float) -> None:
        super().__init__(key, cost, retry_after)
        self.key = key
        self.cost = cost
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.key}: {self.cost:g} token(s) refused, retry after {self.retry_after:.6f} s"


class CostExceedsCapacity(BucketflowError, ValueError):
    """Never: the bucket cannot hold as many tokens as were asked for.

    Attributes:
        key: The bucket or level that can never grant it.
        cost: Tokens asked for.
        capacity: Most tokens that bucket holds.
    """

    def __init__(self, key: str, cost: float, capacity: float) -> None:
        super().__init__(key, cost, capacity)
        self.key = key
        self.cost = cost
        self.capacity = capacity

    def __str__(self) -> str:
        return f"{self.key}: {self.cost:g} token(s) can never be granted, its capacity is {self.capacity:g}"


class StoreUnavailable(BucketflowError):
    """The store that keeps the buckets did not answer in time, or answered that it cannot serve.

    Raised from the driver's own error. Whether the tokens were taken is unknown; nothing is retried.

    Attributes:
        store: Where the store is.
        reason: What the driver said.
    """

    def __init__(self, store: str, reason: str) -> None:
        super().__init__(store, reason)
        self.store = store
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.store} is unavailable: {self.reason}"


class ConfigError(BucketflowError, ValueError):
    """A value that cannot work.

    Attributes:
        entry: The argument, option or entry that holds it.
        value: What was given.
        expected: What would be right.
    """

    def __init__(self, entry: str, value: object, expected: str) -> None:
        super().__init__(entry, value, expected)
        self.entry = entry
        self.value = value
        self.expected = expected

    def __str__(self) -> str:
        return f"{self.entry} is {self.value!r}, expected {self.expected}"
