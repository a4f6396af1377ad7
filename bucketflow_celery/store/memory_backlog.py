"""In-memory backlogs for tests; ``redis_backlog.py`` is the implementation for production."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from queue import Empty, Queue
from typing import Generic, TypeVar

from bucketflow.clock import Clock
from bucketflow.limit import SECOND
from bucketflow_celery.scheduling.admit import LevelState
from bucketflow_celery.scheduling.backlog import Backlog
from bucketflow_celery.scheduling.dispatch import dispatch
from bucketflow_celery.scheduling.leases import RECLAIMED, Leases, settle
from bucketflow_celery.scheduling.model import (
    DispatchReply,
    DispatchRequest,
    Lane,
    ParkedMessage,
    Settlement,
)
from bucketflow_celery.scheduling.move import first_of, move
from bucketflow_celery.scheduling.serving import ServedQueues
from bucketflow_celery.store.interfaces import (
    ALL_QUEUES,
    BacklogView,
    LaneView,
    LeasedTaskView,
    LeaseLost,
    Listener,
    StaleLimits,
)

__all__ = ["MemoryBacklogs", "MemoryStoreCall"]

T = TypeVar("T")


class MemoryStoreCall(Generic[T]):
    """
    Implements :class:`~bucketflow_celery.store.interfaces.StoreCall` without I/O.

    Args:
        function: Runs the operation and returns its reply.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        self.run = function


class MemoryBacklogs:
    """
    Implements :class:`~bucketflow_celery.store.interfaces.BacklogStore` in the memory of one process.

    Args:
        clock: The clock of the store.
        lock: Guards *states* and the backlogs.
        states: States of the levels, by key.
        version: Returns the version of the limits in force.
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
        self._served = ServedQueues()
        self._listeners: list[Queue[str]] = []

    def blocks(self, queue: str, tenant: str) -> bool:
        """See :meth:`bucketflow_celery.scheduling.backlog.Backlog.blocks`. The caller holds the lock."""
        return queue in self._backlogs and self._backlogs[queue].blocks(tenant, self._clock.now())

    def park(
        self, queue: str, messages: Sequence[ParkedMessage], limit: int, *, busy: bool
    ) -> MemoryStoreCall[list[int]]:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""

        def park() -> list[int]:
            with self._lock:
                positions, should_notify = self._of(queue).park(messages, limit, self._clock.now(), busy=busy)
                self._notify(queue, should_notify=should_notify)
                return positions

        return MemoryStoreCall(park)

    def dispatch(
        self, queue: str, request: DispatchRequest, version: str
    ) -> MemoryStoreCall[DispatchReply | StaleLimits | LeaseLost]:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""

        def dispatch_tasks() -> DispatchReply | StaleLimits | LeaseLost:
            with self._lock:
                if version != self._version():
                    return StaleLimits(self._version())
                if self._leases.workers.get(request.worker, RECLAIMED) == RECLAIMED:
                    return LeaseLost()
                backlog, owned = self._of(queue), self._leases.owned[request.worker]
                now = self._clock.now()
                reply, should_notify = dispatch(
                    backlog, request, owned, self._states, now, version=version, is_live=self._is_live
                )
                self._notify(queue, should_notify=should_notify)
                return reply

        return MemoryStoreCall(dispatch_tasks)

    def settle(self, queue: str, settlement: Settlement) -> MemoryStoreCall[int]:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""
        return MemoryStoreCall(lambda: self._settle(queue, settlement))

    def _settle(self, queue: str, settlement: Settlement) -> int:
        with self._lock:
            returned, should_notify = settle(self._of(queue), settlement, self._leases, self._states, self._clock.now())
            self._notify(queue, should_notify=should_notify)
            return returned

    def renew(self, worker: str, seconds: float) -> MemoryStoreCall[tuple[bool, list[str]]]:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""

        def renew() -> tuple[bool, list[str]]:
            with self._lock:
                return self._leases.renew(worker, round(seconds * SECOND), self._clock.now())

        return MemoryStoreCall(renew)

    def announce(self, worker: str, queues: Sequence[str]) -> MemoryStoreCall[list[str]]:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""

        def announce() -> list[str]:
            with self._lock:
                parked = [name for name, backlog in self._backlogs.items() if backlog.count]
                return self._served.announce(worker, queues, parked, self._is_live, self._clock.now())

        return MemoryStoreCall(announce)

    def leased_tasks(self, worker: str) -> MemoryStoreCall[list[LeasedTaskView]]:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""

        def read() -> list[LeasedTaskView]:
            with self._lock:
                leased = self._leases.owned.get(worker, {}).values()
                views = [LeasedTaskView(one.item.uid, one.queue, one.lane, one.item.since) for one in leased]
                return sorted(views, key=lambda view: (view.since, view.uid))

        return MemoryStoreCall(read)

    def purge(self, queue: str, lane: Lane) -> int:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""
        with self._lock:
            return self._of(queue).purge(lane)

    def move(self, queue: str, to: str, lane: Lane, change: Callable[[bytes], bytes]) -> int:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""
        with self._lock:
            source, count = self._of(queue), 0
            while (first := first_of(source, lane)) is not None:
                message = change(source.messages[first.uid])
                _, should_notify = move(source, self._of(to), lane, [(first.uid, message)], self._clock.now())
                self._notify(to, should_notify=should_notify)
                count += 1
            return count

    def queues(self) -> list[str]:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""
        with self._lock:
            return sorted(name for name, backlog in self._backlogs.items() if backlog.count)

    def view(self, queue: str) -> BacklogView:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""
        with self._lock:
            backlog = self._of(queue)
            costs = {name: tenant.cost for name, tenant in backlog.tenants.items()}
            lanes = [LaneView(lane, len(tasks), tasks[0].since) for lane, tasks in backlog.lanes()]
            return BacklogView(
                self._clock.now(),
                costs,
                lanes,
                frozenset(backlog.unclaimed(self._is_live)),
                self._served.serves(queue, self._is_live),
            )

    @contextmanager
    def listen(self) -> Iterator[Listener]:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""
        notifications: Queue[str] = Queue()  # SimpleQueue.get may wait for ever where its timeout is short
        self._listeners.append(notifications)
        try:
            yield _MemoryListener(notifications)
        finally:
            self._listeners.remove(notifications)

    def notify_all(self) -> None:
        """Notify every worker that the limits have changed."""
        self._notify(ALL_QUEUES, should_notify=True)

    def _is_live(self, worker: str) -> bool:
        return self._leases.workers.get(worker, RECLAIMED) > self._clock.now()

    def _of(self, queue: str) -> Backlog:
        return self._backlogs.setdefault(queue, Backlog(queue))

    def _notify(self, queue: str, *, should_notify: bool) -> None:
        if should_notify:
            for notifications in self._listeners:
                notifications.put(queue)


class _MemoryListener:
    def __init__(self, notifications: Queue[str]) -> None:
        self._notifications = notifications

    def get(self, timeout: float) -> str | None:
        try:
            return self._notifications.get(timeout=timeout)
        except Empty:
            return None
