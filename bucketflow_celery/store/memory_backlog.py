"""The backlogs of a fleet that lives in one process, in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from bucketflow.clock import Clock
from bucketflow.limit import SECOND
from bucketflow_celery.scheduling.admit import LevelState
from bucketflow_celery.scheduling.backlog import Backlog
from bucketflow_celery.scheduling.dispatch import dispatch
from bucketflow_celery.scheduling.leases import Leases, settle
from bucketflow_celery.scheduling.model import (
    DispatchReply,
    DispatchRequest,
    Lane,
    ParkedMessage,
    Settlement,
)
from bucketflow_celery.store.interfaces import ALL_QUEUES, LOST, BacklogView, LaneView, LeasedTaskView, Listener

__all__ = ["MemoryBacklogs", "Reply"]

T = TypeVar("T")


class Reply(Generic[T]):
    """
    A call that needs no I/O.

    Args:
        function: Makes it.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        self.run = function


class MemoryBacklogs:
    """
    Backlogs for one process.

    Args:
        clock: Its time.
        lock: Guards *states*.
        states: Of the levels, by key.
        version: Tells the version of the limits.
    """

    def __init__(
        self,
        clock: Clock,
        lock: threading.Lock,
        states: MutableMapping[str, LevelState],
        version: Callable[[], str],
    ) -> None:
        self._clock = clock
        self._lock = lock
        self._states = states
        self._version = version
        self._backlogs: dict[str, Backlog] = {}
        self._leases = Leases()
        self._owned = self._leases.owned
        self._workers = self._leases.workers
        self._listeners: list[SimpleQueue[str]] = []

    def blocks(self, queue: str, tenant: str) -> bool:
        """See :meth:`bucketflow_celery.scheduling.backlog.Backlog.blocks`. The caller holds the lock."""
        return queue in self._backlogs and self._backlogs[queue].blocks(tenant, self._clock.now())

    def park(self, queue: str, parcels: Sequence[ParkedMessage], limit: int, *, busy: bool) -> Reply[list[int]]:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""

        def park() -> list[int]:
            with self._lock:
                positions, call = self._of(queue).park(parcels, limit, self._clock.now(), busy=busy)
                self._call(queue, call)
                return positions

        return Reply(park)

    def dispatch(
        self, queue: str, request: DispatchRequest, version: str
    ) -> Reply[tuple[str, DispatchReply | str | None]]:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""

        def hand_out() -> tuple[str, DispatchReply | str | None]:
            with self._lock:
                if version != self._version():
                    return self._version(), None
                if self._workers.get(request.worker, -1) < 0:
                    return version, LOST
                backlog, owned = self._of(queue), self._owned[request.worker]
                now = self._clock.now()
                released, call = dispatch(backlog, request, owned, self._states, now, version=version)
                self._call(queue, call)
                return version, released

        return Reply(hand_out)

    def settle(self, queue: str, settlement: Settlement) -> Reply[int]:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""
        return Reply(lambda: self._settle(queue, settlement))

    def _settle(self, queue: str, settlement: Settlement) -> int:
        with self._lock:
            returned, notify = settle(self._of(queue), settlement, self._leases, self._states, self._clock.now())
            self._call(queue, notify)
            return returned

    def renew(self, worker: str, seconds: float) -> Reply[tuple[bool, list[str]]]:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""

        def renew() -> tuple[bool, list[str]]:
            with self._lock:
                return self._leases.renew(worker, round(seconds * SECOND), self._clock.now())

        return Reply(renew)

    def owned(self, worker: str) -> Reply[list[LeasedTaskView]]:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""

        def owned() -> list[LeasedTaskView]:
            with self._lock:
                mine = self._owned.get(worker, {}).values()
                views = [LeasedTaskView(one.item.uid, one.queue, one.lane, one.item.since) for one in mine]
                return sorted(views, key=lambda view: (view.since, view.uid))

        return Reply(owned)

    def purge(self, queue: str, lane: Lane) -> int:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""
        with self._lock:
            return self._of(queue).purge(lane)

    def queues(self) -> list[str]:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""
        with self._lock:
            return sorted(name for name, backlog in self._backlogs.items() if backlog.count)

    def view(self, queue: str) -> BacklogView:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""
        with self._lock:
            backlog = self._of(queue)
            costs = {name: tenant.cost for name, tenant in backlog.tenants.items()}
            lanes = [LaneView(lane, len(line), line[0].since) for lane, line in backlog.lanes()]
            return BacklogView(self._clock.now(), costs, lanes)

    @contextmanager
    def listen(self) -> Iterator[Listener]:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""
        calls: SimpleQueue[str] = SimpleQueue()
        self._listeners.append(calls)
        try:
            yield _MemoryListener(calls)
        finally:
            self._listeners.remove(calls)

    def announce(self) -> None:
        """Let every worker look at the limits."""
        self._call(ALL_QUEUES, True)  # noqa: FBT003 - the answer of whoever decided

    def _of(self, queue: str) -> Backlog:
        return self._backlogs.setdefault(queue, Backlog(queue))

    def _call(self, queue: str, call: bool) -> None:  # noqa: FBT001
        if call:
            for calls in self._listeners:
                calls.put(queue)


class _MemoryListener:
    def __init__(self, calls: SimpleQueue[str]) -> None:
        self._calls = calls

    def get(self, timeout: float) -> str | None:
        try:
            return self._calls.get(timeout=timeout)
        except Empty:
            return None
