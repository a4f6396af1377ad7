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
from bucketflow_celery.config.levels import Level
from bucketflow_celery.scheduling.admit import (
    EMPTY,
    AdmissionDecision,
    AdmissionRequest,
    LevelState,
    admit,
    cancel_reservation,
)
from bucketflow_celery.store.interfaces import FleetLimits, StaleLimits
from bucketflow_celery.store.memory_backlog import MemoryBacklogs, MemoryStoreCall

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
        self._told = FleetLimits("", None, frozenset())
        self.backlogs = MemoryBacklogs(clock, self._lock, self._states, lambda: self._told.version)

    def admit(
        self, requests: Sequence[AdmissionRequest], version: str
    ) -> MemoryStoreCall[Sequence[AdmissionDecision] | StaleLimits]:
        """See :class:`bucketflow_celery.store.interfaces.Store`."""

        def decide() -> Sequence[AdmissionDecision] | StaleLimits:
            with self._lock:
                if version != self._told.version:
                    return StaleLimits(self._told.version)
                return admit(requests, self._states, self._clock.now(), self.backlogs.blocks)

        return MemoryStoreCall(decide)

    def cancel_reservation(self, request: AdmissionRequest) -> None:
        """See :class:`bucketflow_celery.store.interfaces.Store`."""
        with self._lock:
            cancel_reservation(request, self._states, self._clock.now())

    def peek(self, path: Sequence[Level]) -> tuple[int, list[LevelState]]:
        """See :class:`bucketflow_celery.store.interfaces.Store`."""
        with self._lock:
            return self._clock.now(), [self._states.get(level.key, EMPTY) for level in path]

    def limits(self) -> FleetLimits:
        """See :class:`bucketflow_celery.store.interfaces.Store`."""
        return self._told

    def set_limits(self, raw: Mapping[str, Any] | None) -> None:
        """See :class:`bucketflow_celery.store.interfaces.Store`."""
        self._tell(raw, self._told.paused)

    def pause(self, name: str, *, paused: bool) -> None:
        """See :class:`bucketflow_celery.store.interfaces.Store`."""
        self._tell(self._told.table, self._told.paused | {name} if paused else self._told.paused - {name})

    def _tell(self, table: Mapping[str, Any] | None, paused: frozenset[str]) -> None:
        version = "" if table is None and not paused else repr((table, sorted(paused)))
        self._told = FleetLimits(version, table, paused)
        self.backlogs.announce()

    def after_fork(self) -> None:
        """Keep everything: there is no connection to drop."""

    def close(self) -> None:
        """Keep everything: there is nothing open."""
