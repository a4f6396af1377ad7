"""
Transactional outbox of the messages to be parked, until the store has them and the broker has forgotten them.

A message is acknowledged after the store has confirmed it. If the store does not answer, the same message is offered
again under the same uid, so that it is stored once.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import TypeAlias

from bucketflow_celery.admission.controller import AdmissionController
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.parking.interfaces import ParkingWorker
from bucketflow_celery.scheduling.model import FULL, KNOWN, ParkedMessage
from bucketflow_celery.stats import Stats

__all__ = ["AckTracker", "Outbox", "ParkBatch", "ParkedTenants"]

#: Seconds after which the broker has certainly processed an acknowledgement.
ACK_DELAY = 5.0
#: Messages, and seconds, after which a call is made to report acknowledgements alone.
MAX_UNREPORTED, MAX_UNREPORTED_SECONDS = 500, 10.0
#: Seconds before a message is offered again to a backlog that was full.
BACKLOG_FULL_PAUSE = 1.0

#: Seconds for which an entry is valid after the store has last confirmed it.
PARKED_TENANT_TTL = 1.0
#: Most entries.
MAX_PARKED_TENANTS = 10_000

#: The messages of one call.
ParkBatch: TypeAlias = "list[tuple[PendingTask, ParkedMessage]]"


class AckTracker:
    """
    Parked messages whose acknowledgement the broker may not have processed yet, on one connection.

    The store keeps their uids meanwhile, for deduplication: a connection that is lost may lose the last
    acknowledgements, and the broker delivers those messages again.
    """

    def __init__(self) -> None:
        self._acknowledged: dict[str, deque[tuple[float, bytes]]] = {}

    def add(self, queue: str, uid: bytes, now: float) -> None:
        """Record that the message *uid* of *queue* was acknowledged at *now*."""
        self._acknowledged.setdefault(queue, deque()).append((now, uid))

    def due(self, now: float) -> str | None:
        """Return a queue of which there is enough to report."""
        for queue, waiting in self._acknowledged.items():
            if not waiting:
                continue
            age = now - waiting[0][0]
            if age > MAX_UNREPORTED_SECONDS or (len(waiting) > MAX_UNREPORTED and age > ACK_DELAY):
                return queue
        return None

    def take(self, queue: str, now: float) -> tuple[bytes, ...]:
        """Return the messages of *queue* that the broker has forgotten, and forget them, too."""
        waiting, forgotten = self._acknowledged.get(queue, deque()), []
        while waiting and now - waiting[0][0] > ACK_DELAY:
            forgotten.append(waiting.popleft()[1])
        return tuple(forgotten)


class ParkedTenants:
    """
    Cache of tenants with parked tasks: their new tasks are parked without asking the store.

    It knows the tasks of this worker's outbox, and what the store has replied.
    """

    def __init__(self) -> None:
        self._being_parked: Counter[tuple[str, str | None]] = Counter()
        self._confirmed_at: dict[tuple[str, str | None], float] = {}

    def blocks(self, task: PendingTask, now: float) -> bool:
        """Return whether the tenant of *task* is known to have parked tasks at *now*."""
        key = task.queue, task.policy.tenant
        return key in self._being_parked or self._confirmed_at.get(key, -inf) > now - PARKED_TENANT_TTL

    def add(self, task: PendingTask) -> None:
        """Record that *task* is about to be parked."""
        self._being_parked[task.queue, task.policy.tenant] += 1

    def remove(self, task: PendingTask) -> None:
        """Undo :meth:`add`."""
        key = task.queue, task.policy.tenant
        self._being_parked[key] -= 1
        if not self._being_parked[key]:
            del self._being_parked[key]

    def confirm(self, queue: str, tenant: str, now: float) -> None:
        """Record that the store reported parked tasks of *tenant* at *now*; ``""``: tasks without a tenant."""
        if len(self._confirmed_at) >= MAX_PARKED_TENANTS:
            self._confirmed_at.clear()
        self._confirmed_at[queue, tenant or None] = now


class Outbox:
    """
    The messages to be parked, on one connection to the broker.

    Args:
        worker: The worker.
        admission: Where tasks go that cannot be parked.
        parked_tenants: Cache of tenants with parked tasks.
        acks: Messages that were acknowledged.
        stats: The worker's counters.
    """

    def __init__(
        self,
        worker: ParkingWorker,
        admission: AdmissionController,
        parked_tenants: ParkedTenants,
        acks: AckTracker,
        stats: Stats,
    ) -> None:
        self._worker = worker
        self._admission = admission
        self._parked_tenants = parked_tenants
        self._acks = acks
        self._stats = stats
        self._waiting: defaultdict[str, deque[PendingTask]] = defaultdict(deque)
        self._in_flight: list[PendingTask] = []
        #: Sent without a reply: if the store knows one of these messages, this worker has parked it.
        self._offered: dict[PendingTask, ParkedMessage] = {}

    def add(self, task: PendingTask) -> None:
        """Park *task* with one of the next calls."""
        self._waiting[task.queue].append(task)
        self._parked_tenants.add(task)

    def tasks(self) -> list[PendingTask]:
        """Return the tasks that are not known to be stored."""
        return [*self._in_flight, *(task for waiting in self._waiting.values() for task in waiting)]

    def take(self, max_messages: int, max_bytes: int) -> tuple[str, ParkBatch] | None:
        """Return the next messages to park, of one queue; then call :meth:`on_reply` or :meth:`on_failure`."""
        for queue, waiting in self._waiting.items():
            batch: ParkBatch = []
            size = 0
            while waiting and len(batch) < max_messages and size < max_bytes:
                task = waiting.popleft()
                message = self._offered.get(task) or self._encode(task)
                if message is not None:
                    batch.append((task, message))
                    size += len(message.message)
            if batch:
                self._in_flight = [task for task, _ in batch]
                return queue, batch
        return None

    def return_overdue(self) -> None:
        """Leave to the broker the tasks that have been here for too long: the store does not take them."""
        for waiting in self._waiting.values():
            for task in [task for task in waiting if self._admission.actions.is_overdue(task)]:
                if self._return(task):
                    waiting.remove(task)

    def on_failure(self, queue: str, batch: ParkBatch) -> None:
        """Offer *batch* again: the store did not answer."""
        self._in_flight = []
        # They may be stored. Then they belong to the store, and this worker may neither start nor republish them.
        self._offered.update(batch)
        self._waiting[queue].extendleft(task for task, _ in reversed(batch))

    def on_reply(self, queue: str, batch: ParkBatch, positions: Sequence[int]) -> bool:
        """
        Act on the store's reply.

        Args:
            queue: The queue of all messages.
            batch: The messages.
            positions: Of each in its lane: 1 or more, ``FULL`` or ``KNOWN``; same length and order.

        Returns:
            Whether one of them is now the head of its lane, and so may be dispatched at once.
        """
        self._in_flight = []
        for (task, message), position in zip(batch, positions, strict=True):
            was_offered = self._offered.pop(task, None) is not None
            if position == FULL:
                self._parked_tenants.remove(task)
                self._admission.prechecks.hold_unparked(task, BACKLOG_FULL_PAUSE)
            elif position == KNOWN and not was_offered and task.redelivered is False:
                self._offer_duplicate(queue, task)
            else:
                self._on_stored(queue, task, message, position)
        return 1 in positions

    def _return(self, task: PendingTask) -> bool:
        # What was offered may be stored. It may come back as it is, since the store knows it, and not as a copy.
        if task in self._offered and not self._worker.keeps_deferred:
            return False
        if not self._admission.actions.requeue(task):
            return False
        self._offered.pop(task, None)
        self._parked_tenants.remove(task)
        return True

    def _encode(self, task: PendingTask) -> ParkedMessage | None:
        if self._admission.actions.has_ended(task):
            self._parked_tenants.remove(task)
            return None
        message = self._worker.encode(task, is_duplicate=False)
        if message is None:
            self._parked_tenants.remove(task)
            task.policy, task.can_park = replace(task.policy, on_limit="hold"), False
            self._admission.prechecks.hold_unparked(task, 0.0)
        return message

    def _offer_duplicate(self, queue: str, task: PendingTask) -> None:
        """Park *task* under another uid: it was published twice with one id, and the other message is parked."""
        message = self._worker.encode(task, is_duplicate=True)
        if message is not None:
            self._offered[task] = message
        self._waiting[queue].append(task)

    def _on_stored(self, queue: str, task: PendingTask, message: ParkedMessage, position: int) -> None:
        now = self._worker.monotonic()
        if position != KNOWN:
            self._stats.parked += 1
            self._parked_tenants.confirm(queue, message.lane.tenant, now)
        self._parked_tenants.remove(task)
        self._admission.actions.leave(task)
        self._worker.on_parked(task, position)
        self._acks.add(queue, message.uid, now)
