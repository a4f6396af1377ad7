"""
Test your limits without Redis: the same arithmetic, in memory.

A worker started in the test's own process (``celery.contrib.testing.worker.start_worker``) with
``Throttle(app, store=MemoryStore(), limits=...)`` throttles exactly as a fleet with Redis would.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from bucketflow.clock import SYSTEM_CLOCK, Clock
from bucketflow_celery.admission import EMPTY, Answer, Ask, LevelState, admit, leave
from bucketflow_celery.limits import Level

__all__ = ["MemoryStore"]


class MemoryStore:
    """
    A store for one process.

    Args:
        clock: Its time; a :class:`bucketflow.testing.FakeClock` lets a test decide when tokens come.
    """

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._states: dict[str, LevelState] = {}
        self._limits: tuple[str, Mapping[str, Any] | None] = ("", None)

    def admit(self, asks: Sequence[Ask], version: str) -> tuple[str, list[Answer] | None]:
        """See :class:`bucketflow_celery.store.Store`."""
        with self._lock:
            if version != self._limits[0]:
                return self._limits[0], None
            return version, admit(asks, self._states, self._clock.now())

    def leave(self, ask: Ask) -> None:
        """See :class:`bucketflow_celery.store.Store`."""
        with self._lock:
            leave(ask, self._states, self._clock.now())

    def peek(self, path: Sequence[Level]) -> tuple[int, list[LevelState]]:
        """See :class:`bucketflow_celery.store.Store`."""
        with self._lock:
            return self._clock.now(), [self._states.get(level.key, EMPTY) for level in path]

    def limits(self) -> tuple[str, Mapping[str, Any] | None]:
        """See :class:`bucketflow_celery.store.Store`."""
        return self._limits

    def set_limits(self, raw: Mapping[str, Any] | None) -> None:
        """See :class:`bucketflow_celery.store.Store`."""
        self._limits = ("", None) if raw is None else (repr(raw), raw)

    def after_fork(self) -> None:
        """Keep everything: there is no connection to drop."""

    def close(self) -> None:
        """Keep everything: there is nothing open."""
