"""
Exceptions of bucketflow.

Each error has its details as attributes and passes them to ``Exception``, so that it survives pickling and the JSON
form of Celery's result backends.
"""

from __future__ import annotations

__all__ = [
    "BucketflowError",
    "ConfigError",
    "CostExceedsCapacity",
    "NotPicklable",
    "RateLimitExceeded",
    "StoreAccessDenied",
    "StoreFull",
    "StoreUnavailable",
]


class BucketflowError(Exception):
    """Base class of all errors that bucketflow raises."""


class RateLimitExceeded(BucketflowError):
    """
    A request that is refused now and can be granted later.

    Attributes:
        key: The bucket, function or level that refused.
        cost: Tokens requested.
        retry_after: Seconds until the same request is granted, if no other caller takes tokens meanwhile.
    """

    def __init__(self, key: str, cost: float, retry_after: float) -> None:
        super().__init__(key, cost, retry_after)
        self.key = key
        self.cost = cost
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.key}: {self.cost:g} token(s) refused, retry after {self.retry_after:.6f} s"


class CostExceedsCapacity(BucketflowError, ValueError):
    """
    A request that can never be granted, because its cost is above the capacity of a bucket.

    Attributes:
        key: The bucket or level that can never grant it.
        cost: Tokens requested.
        capacity: Most tokens that bucket holds.
        advice: What can be done about it; empty if there is no more to say.
    """

    def __init__(self, key: str, cost: float, capacity: float, advice: str = "") -> None:
        super().__init__(key, cost, capacity, *([advice] if advice else []))
        self.key = key
        self.cost = cost
        self.capacity = capacity
        self.advice = advice

    def __str__(self) -> str:
        text = f"{self.key}: {self.cost:g} token(s) can never be granted, its capacity is {self.capacity:g}"
        return f"{text}: {self.advice}" if self.advice else text


class StoreUnavailable(BucketflowError):
    """
    The store of the buckets did not reply in time, or replied that it cannot serve.

    Raised from the driver's error. Whether the tokens were taken is unknown. The call is not retried.

    Attributes:
        store: Address of the store.
        reason: Message of the driver's error.
    """

    def __init__(self, store: str, reason: str) -> None:
        super().__init__(store, reason)
        self.store = store
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.store} is unavailable: {self.reason}"


class StoreFull(StoreUnavailable):
    """The store of the buckets has no memory left for what a call has to write. Nothing was written."""

    def __str__(self) -> str:
        return f"{self.store} is out of memory: {self.reason}"


class StoreAccessDenied(StoreUnavailable):
    """
    The user of the store lacks a right that a call needs. It stays so until an administrator grants it.

    Attributes:
        command: The command that the user may not run; ``None`` if it is a key or a channel that the user may not use.
    """

    def __init__(self, store: str, reason: str, command: str | None = None) -> None:
        super().__init__(store, reason)
        self.args = (store, reason, command)
        self.command = command

    def __str__(self) -> str:
        return f"{self.store} denies this user {self.command or 'access'}: {self.reason}"


class NotPicklable(BucketflowError, TypeError):
    """
    An object that was to be pickled or copied, but lives in one process.

    A copy of a bucket would be another bucket: both together would exceed the limit.

    Attributes:
        kind: Class of the object.
        instead: What to do in place of it.
    """

    def __init__(self, kind: str, instead: str) -> None:
        super().__init__(kind, instead)
        self.kind = kind
        self.instead = instead

    def __str__(self) -> str:
        return f"a {self.kind} lives in one process and can be neither pickled nor copied: {self.instead}"


class ConfigError(BucketflowError, ValueError):
    """
    An invalid argument, option or entry.

    Attributes:
        entry: The argument, option or entry that has the value.
        value: The invalid value.
        expected: Description of a valid value.
    """

    def __init__(self, entry: str, value: object, expected: str) -> None:
        super().__init__(entry, value, expected)
        self.entry = entry
        self.value = value
        self.expected = expected

    def __str__(self) -> str:
        return f"{self.entry} is {self.value!r}, expected {self.expected}"
