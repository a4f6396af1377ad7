"""Queues for which the broker refuses the copies of deferred tasks, so that not every task tries and fails."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from redis.exceptions import NoPermissionError

__all__ = ["RETRY_AFTER", "CopyRefusals", "is_permanent"]

logger = logging.getLogger("bucketflow_celery.worker")

#: Seconds before another copy is tried.
RETRY_AFTER = 300.0

#: Reply codes of AMQP 0-9-1 by which a broker refuses one message: content-too-large, precondition-failed.
_REFUSED_MESSAGE = frozenset({311, 406})
#: Reply codes by which it refuses every message: access-refused, not-found, not-allowed, not-implemented.
_REFUSED_ALL = frozenset({403, 404, 530, 540})


def is_permanent(error: Exception) -> bool:
    """Return whether the broker would refuse the same copy again: it has understood it, and does not accept it."""
    return _code(error) in _REFUSED_ALL | _REFUSED_MESSAGE or isinstance(error, NoPermissionError)


@dataclass(frozen=True, slots=True)
class _Refusal:
    """
    What the broker refuses for one queue.

    Attributes:
        until: When to try again, in seconds of the monotonic clock.
        min_size: Bytes of the smallest body that was refused; 0 if all are.
    """

    until: float
    min_size: int


class CopyRefusals:
    """
    The queues for which the broker refuses copies, and since when.

    Args:
        monotonic: Returns the time in seconds.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._refused: dict[str, _Refusal] = {}

    def expects(self, queue: str, size: int) -> bool:
        """Return whether a copy for *queue* with a body of *size* bytes would be refused, so need not be tried."""
        known = self._refused.get(queue)
        return known is not None and self._monotonic() < known.until and size >= known.min_size

    def record(self, queue: str, size: int, error: Exception) -> bool:
        """
        Record that the broker did not accept a copy; return whether it refuses it for good.

        The first refusal for a queue is logged.
        """
        if not is_permanent(error):
            return False
        now, known = self._monotonic(), self._refused.get(queue)
        min_size = size if _code(error) in _REFUSED_MESSAGE else 0
        if known is not None and now < known.until:
            min_size = min(min_size, known.min_size)
        self._refused[queue] = _Refusal(now + RETRY_AFTER, min_size)
        level = logging.WARNING if known is None else logging.DEBUG
        logger.log(
            level,
            "broker refuses deferred tasks, they are held instead: queue=%s min_size=%d retry_after=%.0f error=%r",
            queue,
            min_size,
            RETRY_AFTER,
            error,
        )
        return True

    def forget(self, queue: str, size: int) -> None:
        """Record that the broker accepted a copy for *queue* with a body of *size* bytes."""
        known = self._refused.get(queue)
        if known is not None and size >= known.min_size:
            del self._refused[queue]
            logger.warning("broker accepts deferred tasks again: queue=%s", queue)


def _code(error: Exception) -> object:
    return getattr(error, "reply_code", None)
