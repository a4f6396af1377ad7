"""One line in the log every few seconds about what was refused: a line a refusal would drown everything else."""

from __future__ import annotations

import logging
from collections.abc import Callable

__all__ = ["RefusalLog"]

logger = logging.getLogger(__name__)

#: Seconds between two lines.
INTERVAL = 10.0
#: Most buckets a line names.
MOST = 5


class RefusalLog:
    """
    Counts refusals by bucket and logs them at INFO.

    Args:
        clock: Seconds of a clock that never steps.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._next = 0.0
        self._refused: dict[str, tuple[int, float]] = {}

    def add(self, key: str, wait: float) -> None:
        """Count a refusal by the bucket *key*, *wait* seconds long; log if the last line is old enough."""
        count, longest = self._refused.get(key, (0, 0.0))
        self._refused[key] = (count + 1, max(longest, wait))
        now = self._clock()
        if now < self._next:
            return
        self._next = now + INTERVAL
        worst = sorted(self._refused.items(), key=lambda item: -item[1][0])[:MOST]
        logger.info(
            "throttled %d task(s): %s",
            sum(count for count, _ in self._refused.values()),
            ", ".join(f"{key} {count} (longest wait {longest:.1f} s)" for key, (count, longest) in worst),
        )
        self._refused.clear()
