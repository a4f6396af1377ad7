"""
Parked tasks in the flush of a prefork pool.

When Celery loses the connection to the broker, it forgets all jobs that no child process has accepted: the broker
delivers their messages again. No broker delivers a parked task again.
"""

from __future__ import annotations

# ruff: noqa: SLF001 - billiard shows the jobs of a pool nowhere else
import logging
from collections.abc import Callable
from typing import Any

__all__ = ["PoolFlush"]

logger = logging.getLogger("bucketflow_celery.parking")


class PoolFlush:
    """
    Replaces ``flush`` of a pool: no parked task is forgotten.

    A job that is on its way to a child is kept, because the child will run it. The others return to their lanes.

    Args:
        pool: Celery's pool.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._flush: Callable[[], None] | None = None

    def connect(self) -> None:
        """Replace ``flush`` of a prefork pool, which has it only once it has started. Other pools forget no job."""
        flush = getattr(self._pool, "flush", None)
        if self._pool.uses_semaphore and flush is not None and flush != self._on_flush:
            self._flush, self._pool.flush = flush, self._on_flush

    def _on_flush(self) -> None:
        if self._flush is None:
            return
        parked = [job for job in list(self._pool._pool._cache.values()) if not job._accepted and _is_parked(job)]
        sent = [job for job in parked if job._write_to is not None]
        for job in sent:
            job._accepted = True  # what was accepted is not flushed
        try:
            self._flush()
        finally:
            for job in sent:
                job._accepted = job._worker_pid is not None
        for job in parked:
            if not job._accepted and not self._will_run(job):
                job.discard()
                _return(_request_of(job))

    def _will_run(self, job: Any) -> bool:
        return job._job in self._pool._pool._cache and job._write_to is not None and job._write_to._is_alive()


def _request_of(job: Any) -> Any:
    return getattr(job._accept_callback, "__self__", None)


def _is_parked(job: Any) -> bool:
    return getattr(_request_of(job), "is_parked", False)


def _return(request: Any) -> None:
    if not request.acknowledged:
        logger.debug("task returns to its lane, the pool has forgotten it: id=%s", request.id)
        request.acknowledged = True
        request._on_reject(logger, request.connection_errors, True)  # noqa: FBT003 - requeue
