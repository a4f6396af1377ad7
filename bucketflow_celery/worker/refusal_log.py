"""Rate-limited log of refusals: one line for many, because a line for each would bury every other message."""

from __future__ import annotations

import logging
from collections.abc import Callable

__all__ = ["RefusalLog"]

logger = logging.getLogger("bucketflow_celery.worker")

#: Minimum interval between two log lines, in seconds.
LOG_INTERVAL = 10.0
#: Maximum number of buckets that a log line names.
MAX_BUCKETS = 5


class RefusalLog:
    """
    Counts refusals by bucket and logs the buckets with the most of them, at INFO.

    Args:
        clock: Returns the seconds of a monotonic clock.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._next_at = 0.0
        self._refused: dict[str, tuple[int, float]] = {}

    def add(self, key: str, wait: float) -> None:
        """
        Count a refusal, and log all that were counted if the last log line is old enough.

        Args:
            key: The bucket that refused.
            wait: Seconds until it has the tokens.
        """
        count, longest = self._refused.get(key, (0, 0.0))
        self._refused[key] = (count + 1, max(longest, wait))
        now = self._clock()
        if now < self._next_at:
            return
        self._next_at = now + LOG_INTERVAL
        worst = sorted(self._refused.items(), key=lambda item: -item[1][0])[:MAX_BUCKETS]
        logger.info(
            "throttled %d task(s): %s",
            sum(count for count, _ in self._refused.values()),
            ", ".join(f"{key} {count} (longest wait {longest:.1f} s)" for key, (count, longest) in worst),
        )
        self._refused.clear()
