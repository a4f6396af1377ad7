"""Backlogs in the memory of one process, for tests."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from bucketflow.clock import Clock
from bucketflow.limit import SECOND
from bucketflow_celery.scheduling.admit import LevelState
from bucketflow_celery.scheduling.backlog import Backlog, give_back
from bucketflow_celery.scheduling.dispatch import dispatch
from bucketflow_celery.scheduling.model import (
    DispatchReply,
    DispatchRequest,
    Lane,
    LeasedTask,
    ParkedMessage,
    Settlement,
)
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


#: Most workers with an expired lease that one renewal names.
_MAX_EXPIRED = 16


class MemoryStoreCall(Generic[T]):
    """
    Implements :class:`~bucketflow_celery.store.interfaces.StoreCall` without I/O.

    Args:
        function: Makes the call.
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
        self._owned: defaultdict[str, dict[bytes, LeasedTask]] = defaultdict(dict)
        self._workers: dict[str, int] = {}
        self._listeners: list[SimpleQueue[str]] = []

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
                self._notify(queue, should_notify)
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
                if self._workers.get(request.worker, -1) < 0:
                    return LeaseLost()
                backlog, owned = self._of(queue), self._owned[request.worker]
                now = self._clock.now()
                reply, should_notify = dispatch(backlog, request, owned, self._states, now, version=version)
                self._notify(queue, should_notify)
                return reply

        return MemoryStoreCall(dispatch_tasks)

    def settle(self, queue: str, settlement: Settlement) -> MemoryStoreCall[int]:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""
        return MemoryStoreCall(lambda: self._settle(queue, settlement))

    def _settle(self, queue: str, settlement: Settlement) -> int:
        worker, now = settlement.worker, self._clock.now()
        with self._lock:
            if settlement.dead:
                if self._workers.get(worker, -1) > now:
                    return 0
                self._workers[worker] = -1
                self._of(queue).polls.pop(worker, None)
            owned, backlog = self._owned[worker], self._of(queue)
            for uid in settlement.ended:
                if owned.pop(uid, None) is not None:
                    del backlog.messages[uid]
            for uid in settlement.confirmed:
                backlog.dedup.pop(uid, None)
            returned = 0
            for uid, _, may_have_started in reversed(settlement.returned):  # each goes in front of the one before
                one = owned.pop(uid, None)
                if one is not None:
                    item = replace(one.item, redelivered=one.item.redelivered or may_have_started)
                    backlog.put_back(replace(one, item=item))
                    returned += 1
            self._notify(queue, returned > 0 and backlog.should_notify_now(now))
            for path, cost in settlement.refunds:
                give_back(path, cost, self._states, now)
            if settlement.dead and not owned:
                del self._workers[worker], self._owned[worker]
            return returned

    def renew(self, worker: str, seconds: float) -> MemoryStoreCall[tuple[bool, list[str]]]:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""

        def renew() -> tuple[bool, list[str]]:
            with self._lock:
                now = self._clock.now()
                alive_until = self._workers.get(worker, 0)
                if alive_until >= 0:
                    self._workers[worker] = now + round(seconds * SECOND)
                dead = sorted((until, name.encode()) for name, until in self._workers.items() if until <= now)
                return alive_until > 0, [name.decode() for _, name in dead[:_MAX_EXPIRED]]

        return MemoryStoreCall(renew)

    def leased_tasks(self, worker: str) -> MemoryStoreCall[list[LeasedTaskView]]:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""

        def owned() -> list[LeasedTaskView]:
            with self._lock:
                mine = self._owned.get(worker, {}).values()
                views = [LeasedTaskView(one.item.uid, one.queue, one.lane, one.item.since) for one in mine]
                return sorted(views, key=lambda view: (view.since, view.uid))

        return MemoryStoreCall(owned)

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
        self._notify(ALL_QUEUES, True)  # noqa: FBT003 - the answer of whoever decided

    def _of(self, queue: str) -> Backlog:
        return self._backlogs.setdefault(queue, Backlog(queue))

    def _notify(self, queue: str, call: bool) -> None:  # noqa: FBT001
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
