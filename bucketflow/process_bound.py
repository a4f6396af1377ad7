"""Objects that live in one process, because they have locks, waiters or connections."""

from __future__ import annotations

from typing import ClassVar, NoReturn, SupportsIndex

from bucketflow.errors import NotPicklable

__all__ = ["USE_REDIS", "ProcessBound"]

#: The way to share a bucket with other processes.
USE_REDIS = "bucketflow.distributed.RedisTokenBucket is the bucket that processes share; or create one in each process"


class ProcessBound:
    """Base of a class whose objects can be neither pickled nor copied."""

    __slots__ = ()

    #: What to do in place of pickling or copying an object of the class; for the error.
    _instead: ClassVar[str]

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        # pickle, copy and all that build on them call it first.
        raise NotPicklable(type(self).__qualname__, self._instead)
