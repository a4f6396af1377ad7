"""Rate-limited log of refusals: one line for many, because a line for each would bury every other message."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["RefusalLog"]

logger = logging.getLogger("bucketflow_celery.worker")

#: Seconds after a refusal within which it is logged. A line covers all refusals since the one before.
LOG_INTERVAL = 10.0
#: Maximum number of buckets that a log line names.
MAX_BUCKETS = 5


class RefusalLog:
    """
    Counts refusals by bucket and logs the buckets with the most of them, at INFO.

    The first refusal starts a timer, and the next one after a log line starts it again. Without refusals none runs.

    Args:
        call_after: Runs a callback after a number of seconds.
    """

    def __init__(self, call_after: Callable[[float, Callable[[], None]], Any]) -> None:
        self._call_after = call_after
        self._refused: dict[str, tuple[int, float]] = {}
        self._is_timed = False
        self._lock = threading.Lock()

    def add(self, key: str, wait: float) -> None:
        """
        Count a refusal. It is logged within ten seconds.

        Args:
            key: The bucket that refused.
            wait: Seconds until it has the tokens.
        """
        with self._lock:
            count, longest = self._refused.get(key, (0, 0.0))
            self._refused[key] = (count + 1, max(longest, wait))
            starts_timer, self._is_timed = not self._is_timed, True
        if starts_timer:
            self._call_after(LOG_INTERVAL, self._on_timer)

    def flush(self) -> None:
        """Log now what is not logged yet."""
        with self._lock:
            refused, self._refused = self._refused, {}
        if not refused:
            return
        worst = sorted(refused.items(), key=lambda item: -item[1][0])[:MAX_BUCKETS]
        logger.info(
            "throttled %d task(s): %s",
            sum(count for count, _ in refused.values()),
            ", ".join(f"{key} {count} (longest wait {longest:.1f} s)" for key, (count, longest) in worst),
        )

    def _on_timer(self) -> None:
        with self._lock:
            self._is_timed = False
        self.flush()
