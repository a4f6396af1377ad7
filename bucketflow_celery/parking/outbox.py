"""What a worker offers to the backlogs, until the store has it and the broker has forgotten it."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.parking.interfaces import Desk, ParkingWorker
from bucketflow_celery.parking.parked_tenants import ParkedTenants
from bucketflow_celery.scheduling.model import FULL, KNOWN, ParkedMessage
from bucketflow_celery.stats import Stats

__all__ = ["AckTracker", "Outbox", "ParkBatch"]

#: Seconds after which the broker has surely delivered that a message was acknowledged.
SURE = 5.0
#: Messages, and seconds, after which it is worth a call to say so.
MANY, LONG = 500, 10.0


class AckTracker:
    """Messages that were acknowledged on one connection to the broker. A lost connection may take the last along."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[tuple[float, bytes]]] = {}

    def add(self, queue: str, uid: bytes, now: float) -> None:
        """Take note that the message *uid* of *queue* was acknowledged at *now*."""
        self._waiting.setdefault(queue, deque()).append((now, uid))

    def due(self, now: float) -> str | None:
        """Return a queue of which there is enough to tell."""
        for queue, waiting in self._waiting.items():
            if waiting and (now - waiting[0][0] > LONG or (len(waiting) > MANY and now - waiting[0][0] > SURE)):
                return queue
        return None

    def take(self, queue: str, now: float) -> tuple[bytes, ...]:
        """Return the messages of *queue* that the broker has forgotten, and forget them, too."""
        waiting, sure = self._waiting.get(queue, deque()), []
        while waiting and now - waiting[0][0] > SURE:
            sure.append(waiting.popleft()[1])
        return tuple(sure)


#: Messages offered in one call.
ParkBatch: TypeAlias = "list[tuple[PendingTask, ParkedMessage]]"

#: Seconds before a message is offered again to a backlog that was full.
FULL_PAUSE = 1.0


class Outbox:
    """
    The messages that are to be parked, on one connection to the broker.

    Args:
        worker: The worker.
        desk: The gate in front of its pool.
        parked_tenants: Which tenants have tasks parked.
        acks: Which messages were acknowledged.
        stats: Where to count.
    """

    def __init__(
        self, worker: ParkingWorker, desk: Desk, parked_tenants: ParkedTenants, acks: AckTracker, stats: Stats
    ) -> None:
        self._worker = worker
        self._desk = desk
        self._parked_tenants = parked_tenants
        self._acks = acks
        self._stats = stats
        self._parking: defaultdict[str, deque[PendingTask]] = defaultdict(deque)
        self._being_parked: list[PendingTask] = []
        self._offered: dict[PendingTask, ParkedMessage] = {}  # if the store knows one of these, it is from here

    def add(self, task: PendingTask) -> None:
        """Let *task* be offered."""
        self._parking[task.queue].append(task)
        self._parked_tenants.add(task)

    def tasks(self) -> list[PendingTask]:
        """Return the tasks that are not known to be stored."""
        return [*self._being_parked, *(task for parking in self._parking.values() for task in parking)]

    def take(self, most: int, most_bytes: int) -> tuple[str, ParkBatch] | None:
        """Return what to batch next, of one queue; then call :meth:`on_answer` or :meth:`on_failure`."""
        for queue, parking in self._parking.items():
            batch: ParkBatch = []
            size = 0
            while parking and len(batch) < most and size < most_bytes:
                task = parking.popleft()
                parcel = self._parcel(task)
                if parcel is not None:
                    batch.append((task, parcel))
                    size += len(parcel.message)
            if batch:
                self._being_parked = [task for task, _ in batch]
                return queue, batch
        return None

    def on_failure(self, queue: str, batch: ParkBatch) -> None:
        """Make *batch* again: the store did not answer."""
        self._being_parked = []
        # They may be stored, and are the store's then: from here on nobody may start them, nor send them elsewhere.
        self._offered.update(batch)
        self._parking[queue].extendleft(task for task, _ in reversed(batch))

    def on_answer(self, queue: str, batch: ParkBatch, positions: Sequence[int]) -> bool:
        """
        Act on the store's answer.

        Args:
            queue: The queue of all of them.
            batch: What was offered.
            positions: Of each, in its lane: 1 or more, ``FULL`` or ``KNOWN``; same length and order.

        Returns:
            Whether one of them is the first of its lane now, and so may be dispatched out at once.
        """
        self._being_parked = []
        for (task, parcel), position in zip(batch, positions, strict=True):
            was_offered = self._offered.pop(task, None) is not None
            if position == FULL:
                self._keep(task)
            elif position == KNOWN and not was_offered and self._worker.is_fresh(task):
                self._offer_twin(queue, task)
            else:
                self._on_stored(queue, task, parcel, position)
        return 1 in positions

    def _parcel(self, task: PendingTask) -> ParkedMessage | None:
        if task in self._offered:
            return self._offered[task]
        if self._worker.is_revoked_or_expired(task):
            self._parked_tenants.remove(task)
            self._desk.leave(task)
            return None
        parcel = self._worker.parcel(task, again=False)
        if parcel is None:
            self._parked_tenants.remove(task)
            task.policy = replace(task.policy, on_limit="hold")
            self._desk.keep(task, 0.0)
        return parcel

    def _offer_twin(self, queue: str, task: PendingTask) -> None:
        """Park a message that looks like one that is parked, and was not delivered twice but published twice."""
        parcel = self._worker.parcel(task, again=True)
        if parcel is not None:
            self._offered[task] = parcel
        self._parking[queue].append(task)

    def _keep(self, task: PendingTask) -> None:
        self._parked_tenants.remove(task)
        self._desk.keep(task, FULL_PAUSE)

    def _on_stored(self, queue: str, task: PendingTask, parcel: ParkedMessage, position: int) -> None:
        now = self._worker.monotonic()
        if position != KNOWN:
            self._stats.parked += 1
            self._parked_tenants.remember(queue, parcel.lane.tenant, now)
        self._parked_tenants.remove(task)
        self._desk.leave(task)
        self._worker.parked(task, position)
        self._acks.add(queue, parcel.uid, now)
