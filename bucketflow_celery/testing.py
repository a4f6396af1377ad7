"""
In-memory store for tests: limits without Redis, with the same arithmetic.

Start a worker in the test's own process with ``celery.contrib.testing.worker.start_worker``. With
``Throttle(app, store=MemoryStore(), limits=...)`` it throttles exactly as workers with Redis do.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from bucketflow.clock import SYSTEM_CLOCK, Clock
from bucketflow.limit import SECOND
from bucketflow.process_bound import ProcessBound
from bucketflow_celery.config.levels import Level
from bucketflow_celery.scheduling.admit import (
    EMPTY,
    AdmissionDecision,
    AdmissionRequest,
    LevelState,
    admit,
    cancel_reservation,
    charge,
)
from bucketflow_celery.scheduling.purges import MAX_PURGES, PURGE_TTL
from bucketflow_celery.store.interfaces import Announced, FleetLimits, StaleLimits
from bucketflow_celery.store.memory_backlog import MemoryBacklogs, MemoryStoreCall

__all__ = ["MemoryStore"]


class MemoryStore(ProcessBound):
    """
    Keeps levels, limits and backlogs in memory, for workers and publishers in one process.

    Args:
        clock: The clock of the store. With a :class:`bucketflow.testing.FakeClock` the test controls the time.
    """

    _instead = "create one in each process, or keep the limits of several processes in Redis"

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._states: dict[str, LevelState] = {}
        self._fleet_limits = FleetLimits("", None, frozenset())
        self._workers: dict[tuple[str, str], int] = {}
        self._purges: dict[str, int] = {}
        self.backlogs = MemoryBacklogs(clock, self._lock, self._states, lambda: self._fleet_limits.version)

    def admit(
        self, requests: Sequence[AdmissionRequest], version: str
    ) -> MemoryStoreCall[Sequence[AdmissionDecision] | StaleLimits]:
        """See :class:`bucketflow_celery.store.interfaces.Store`."""

        def decide() -> Sequence[AdmissionDecision] | StaleLimits:
            with self._lock:
                if version != self._fleet_limits.version:
                    return StaleLimits(self._fleet_limits.version)
                return admit(requests, self._states, self._clock.now(), self.backlogs.blocks)

        return MemoryStoreCall(decide)

    def cancel_reservation(self, request: AdmissionRequest) -> None:
        """See :class:`bucketflow_celery.store.interfaces.Store`."""
        with self._lock:
            cancel_reservation(request, self._states, self._clock.now())

    def charge(self, costs: Sequence[tuple[Level, float]]) -> MemoryStoreCall[None]:
        """See :class:`bucketflow_celery.store.interfaces.Store`."""

        def take() -> None:
            with self._lock:
                charge(costs, self._states, self._clock.now())

        return MemoryStoreCall(take)

    def peek(self, path: Sequence[Level]) -> tuple[int, list[LevelState]]:
        """See :class:`bucketflow_celery.store.interfaces.Store`."""
        with self._lock:
            return self._clock.now(), [self._states.get(level.key, EMPTY) for level in path]

    def limits(self) -> FleetLimits:
        """See :class:`bucketflow_celery.store.interfaces.Store`."""
        return self._fleet_limits

    def set_limits(self, raw: Mapping[str, Any] | None, version: str | None = None) -> StaleLimits | None:
        """See :class:`bucketflow_celery.store.interfaces.Store`."""
        with self._lock:
            current = self._fleet_limits
            if version not in (None, current.version):
                return StaleLimits(current.version)
            self._fleet_limits = _fleet_limits(raw, current.paused, self._purges)
        self.backlogs.notify_all()
        return None

    def announce_worker(self, worker: str, digest: str, seconds: float) -> MemoryStoreCall[Announced]:
        """See :class:`bucketflow_celery.store.interfaces.Store`."""

        def announce() -> Announced:
            with self._lock:
                now = self._clock.now()
                fresh = {other: at for other, at in self._workers.items() if at > now - seconds * SECOND}
                self._workers = {**fresh, (digest, worker): now}
                return Announced(len(self._workers), sorted({other for other, _ in self._workers} - {digest}))

        return MemoryStoreCall(announce)

    def pause(self, name: str, *, paused: bool) -> None:
        """See :class:`bucketflow_celery.store.interfaces.Store`."""
        with self._lock:
            _, table, names = self._fleet_limits
            names = names | {name} if paused else names - {name}
            self._fleet_limits = _fleet_limits(table, names, self._purges)
        self.backlogs.notify_all()

    def purges(self) -> tuple[int, Sequence[tuple[str, int]]]:
        """See :class:`bucketflow_celery.store.interfaces.Store`."""
        with self._lock:
            return self._clock.now(), list(self._purges.items())

    def mark_purge(self, name: str) -> None:
        """See :class:`bucketflow_celery.store.interfaces.Store`."""
        with self._lock:
            now = self._clock.now()
            kept = {other: at for other, at in self._purges.items() if at > now - PURGE_TTL and other != name}
            self._purges = dict([*sorted(kept.items(), key=itemgetter(1)), (name, now)][-MAX_PURGES:])
            _, table, paused = self._fleet_limits
            self._fleet_limits = _fleet_limits(table, paused, self._purges)
        self.backlogs.notify_all()

    def check_access(self, *, parks: bool) -> None:
        """Do nothing: there is no access control."""

    def after_fork(self) -> None:
        """Do nothing: there is no connection to drop."""

    def close(self) -> None:
        """Do nothing: there is no connection to close."""


def _fleet_limits(table: Mapping[str, Any] | None, paused: frozenset[str], purges: Mapping[str, int]) -> FleetLimits:
    if table is None and not paused and not purges:
        return FleetLimits("", None, paused)
    parts = (table, sorted(paused), sorted(purges.items()))
    return FleetLimits(hashlib.sha256(repr(parts).encode()).hexdigest()[:16], table, paused)
