"""
Admission control in front of a worker's pool: which tasks are asked for, and when.

A task is asked for only when a slot is free, so that no waiting task holds tokens. A refusal by ``all`` or a queue
blocks the whole queue: its tasks are held, and only the head asks again, once, when the store said that tokens come.
Tasks refused by their tenant or task type are deferred: they return to the broker with a ticket.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from operator import attrgetter
from typing import Any, TypeAlias

from bucketflow.errors import BucketflowError, StoreUnavailable
from bucketflow_celery.admission.actions import TaskActions
from bucketflow_celery.admission.decisions import DecisionHandler
from bucketflow_celery.admission.hold_queues import HoldQueue, HoldQueues
from bucketflow_celery.admission.interfaces import NoParking, Parking, Worker
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.admission.prechecks import Prechecks
from bucketflow_celery.admission.reservations import ReservationPool
from bucketflow_celery.config.policy import ThrottlePolicy
from bucketflow_celery.scheduling.admit import AdmissionRequest
from bucketflow_celery.scheduling.ticket import Ticket
from bucketflow_celery.stats import Stats
from bucketflow_celery.store.calls import Asker, InFlightCall, Outcome
from bucketflow_celery.store.circuit_breaker import CircuitBreaker

__all__ = ["AdmissionController", "HoldLimits"]

logger = logging.getLogger(__name__)

#: Tasks to ask for, each with the queue that it stood in, if it stood in any.
Batch: TypeAlias = "list[tuple[PendingTask, HoldQueue | None]]"

#: Most tasks asked for in one call.
MOST = 64
#: Seconds after which a worker that is at work looks for new limits, if it had no other reason to call the store.
LOOK = 5.0
#: Seconds for which a task that may be parked waits for a slot here: longer than that, another worker may have one.
NO_SLOT = 0.1
#: Seconds between two looks for tasks that have been held too long.
SWEEP = 1.0


@dataclass(frozen=True, slots=True)
class HoldLimits:
    """
    How long is too long, in seconds.

    Attributes:
        max_hold: A message held longer goes back to the broker.
        max_countdown: No countdown is longer.
    """

    max_hold: float
    max_countdown: float


@dataclass(frozen=True, slots=True)
class _Question:
    """What was asked: for each task of the batch its ask, same order."""

    batch: Batch
    requests: Sequence[AdmissionRequest]


class AdmissionController:
    """
    Admission in one worker.

    Args:
        worker: The worker.
        asker: Puts questions to the store.
        resolve: What a request needs that came from a queue; raises ``BucketflowError`` if that cannot be told.
        breaker: What to do while the store is away.
        hold_limits: How long is too long.
        stats: Where to count.
    """

    def __init__(  # noqa: PLR0913 - its seams, each given by name
        self,
        worker: Worker,
        *,
        asker: Asker,
        resolve: Callable[[Any, str], ThrottlePolicy],
        breaker: CircuitBreaker,
        hold_limits: HoldLimits,
        stats: Stats,
    ) -> None:
        self._worker = worker
        self._resolve = resolve
        self._breaker = breaker
        self._max_hold = hold_limits.max_hold
        self._stats = stats
        self._room: Parking = NoParking()
        self._room_first = False
        self._actions = TaskActions(worker, stats, hold_limits.max_countdown)
        self._inbox: deque[PendingTask] = deque()
        self._hold_queues = HoldQueues()
        self._reservations = ReservationPool()
        self._turn = threading.Lock()
        self._again = False
        self._closed = False
        self._next_sweep = 0.0
        self._asker = asker
        self._asked_at = -inf
        self._in_flight: InFlightCall[_Question] = InFlightCall(stats, self.run)
        self._prechecks = Prechecks(self._hold_queues, self._actions, breaker, worker.monotonic)
        self._decisions = DecisionHandler(self._hold_queues, self._reservations, self._actions, self._prechecks)

    def open(self, room: Parking) -> None:
        """Let tasks be parked in *room*, and be dispatched out from there."""
        self._room = self._prechecks.room = room
        self.run()

    def submit(self, request: Any, queue: str, ticket: Ticket) -> None:
        """Let a task queue up; it starts, waits, returns or fails from here on."""
        try:
            policy = self._resolve(request, queue)
        except BucketflowError as error:
            self._actions.fail(request, error)
            return
        task = PendingTask(
            request, queue, policy, self._worker.monotonic(), ticket.first_refused_at, dict(ticket.reservations)
        )
        if not self._prechecks.can_start(task):
            return
        self._inbox.append(task)
        # While a question is on its way nobody else can ask: the round that lands it requests for all who came
        # meanwhile.
        if self._in_flight.context is None:
            self.run()

    def run(self) -> None:
        """Let in whoever may start. Any thread may call; one at a time works for all of them."""
        self._again = True
        while self._again and not self._closed and self._turn.acquire(blocking=False):
            try:
                while self._again and not self._closed:
                    self._again = False
                    self._round()
            finally:
                self._turn.release()

    def stop(self) -> None:
        """Let nobody in any more. Safe in a signal handler: it only sets a flag."""
        self._closed = True

    def close(self) -> list[PendingTask]:
        """Stop, and return those who were waiting: the caller leaves them to the broker."""
        self.stop()
        with self._turn:
            flight = self._in_flight.drop()
            asked = [] if flight is None else [task for task, _ in flight.context.batch]
            waiting = [*asked, *self._hold_queues.clear(), *self._inbox]
            self._inbox.clear()
            self._stats.waiting = 0
        return waiting

    def _round(self) -> None:
        self._on_reply()
        self._room.on_reply()
        if self._free() > 0:  # when slots are scarce, fresh tasks and parked ones take turns
            self._room_first = not self._room_first
        if self._room_first:
            self._room.work(self._free)
        self._sweep()
        self._look()
        self._park_those_without_a_slot()
        while self._in_flight.context is None and (free := self._free()) > 0:
            batch = self._collect(min(free, MOST))
            if batch is None:
                break
            self._put(batch)
        self._room.work(self._free)
        if self._in_flight.context is None:  # else whoever comes meanwhile is asked for next, in one call
            self._hold_queues.prune()
        self._stats.waiting = len(self._hold_queues) + len(self._inbox)
        self._rest()

    def _free(self) -> int:
        question = self._in_flight.context
        asked = 0 if question is None else len(question.batch)
        return self._worker.free() - asked - self._room.reserved

    def _rest(self) -> None:
        now, wake_at = self._worker.monotonic(), inf
        if self._in_flight.context is None:
            ready_at = max(self._hold_queues.next_ready_at(), self._breaker.until)
            if self._inbox or ready_at <= now:
                self._when_free()
            if len(self._hold_queues):
                wake_at = min(ready_at if ready_at > now else self._next_sweep, self._next_sweep)
            first = self._first_worth_parking()
            if first is not None:
                wake_at = min(wake_at, max(first.received_at + NO_SLOT, self._breaker.until))
        room_at = self._room.wake_at()
        if room_at is not None and room_at <= now:
            self._when_free()
        elif room_at is not None:
            wake_at = min(wake_at, room_at)
        if wake_at < inf:
            self._worker.call_after(max(0.001, wake_at - now), self.run)

    def _when_free(self) -> None:
        if self._free() > 0:  # it got free meanwhile
            self._again = True
        elif self._worker.free() <= 0:  # else it waits for an answer, and so do we
            self._worker.when_free(self.run)

    def _collect(self, most: int) -> Batch | None:
        """Take up to *most* tasks that may ask, each with the queue it stood in; ``None`` if there is nothing to do."""
        now = self._worker.monotonic()
        batch: Batch = []
        if self._breaker.until <= now:
            for queue in self._hold_queues.ready(now):
                taken = queue.take_ready(now, most - len(batch))
                if queue.level is None:
                    self._inbox.extendleft(reversed(taken))
                else:
                    batch += [(task, queue) for task in taken]
        if not batch and not self._inbox:
            return None
        while self._inbox and len(batch) < min(most, self._free()):
            task = self._inbox.popleft()
            if self._prechecks.must_ask(task, now):
                batch.append((task, None))
        return batch

    def _park_those_without_a_slot(self) -> None:
        """Park who has waited for a slot, so that another worker can start it, and who would be parked in any case."""
        now = self._worker.monotonic()
        if not self._room.is_open or self._in_flight.context is not None or self._breaker.until > now:
            return
        before = now - NO_SLOT if self._free() <= 0 else -inf
        waiting = deque(task for task in self._inbox if not self._is_parked_at_once(task, now, before))
        if len(waiting) < len(self._inbox):
            self._inbox = waiting

    def _first_worth_parking(self) -> PendingTask | None:
        if not self._room.is_open:
            return None
        return next((task for task in self._inbox if task.policy.is_worth_parking), None)

    def _is_parked_at_once(self, task: PendingTask, now: float, before: float) -> bool:
        policy = task.policy
        if not policy.is_worth_parking or (task.received_at >= before and not self._prechecks.blocks(task, now)):
            return False
        self._prechecks.park(task)
        return True

    def keep(self, task: PendingTask, seconds: float) -> None:
        """Hold an task that could not be parked, for so many seconds."""
        self._prechecks.keep(task, seconds)

    def leave(self, task: PendingTask) -> None:
        """Take note that an task does not wait here any more."""
        self._actions.leave(task)

    def _put(self, batch: Batch) -> None:
        batch = [(task, queue) for task, queue in batch if not self._actions.is_revoked_or_expired(task)]
        requests = [self._reservations.question(task, self._actions.waited(task)) for task, _ in batch]
        if requests:
            self._ask(batch, requests)

    def _look(self) -> None:
        """Make a call without requests to learn of new limits, if no task has been asked for recently."""
        now = self._worker.monotonic()
        is_due = self._room.must_look or now - max(self._asked_at, self._room.looked_at) >= LOOK
        if self._in_flight.context is None and self._breaker.until <= now and is_due:
            self._ask([], [])

    def _ask(self, batch: Batch, requests: Sequence[AdmissionRequest]) -> None:
        self._asked_at = self._worker.monotonic()
        self._room.must_look = False
        send = partial(self._asker.ask, requests, inline=bool(requests and self._inbox))
        self._in_flight.put(_Question(batch, requests), send)
        self._on_reply()

    def _on_reply(self) -> None:
        """Act on the outcome of the question that was put, if it is there."""
        flight = self._in_flight.take()
        if flight is None:
            return
        batch, requests = flight.context.batch, flight.context.requests
        outcome: Outcome = flight.outcome
        if isinstance(outcome, StoreUnavailable):
            self._reservations.restore(requests)
            self._store_failed(outcome, batch)
            return
        if self._breaker.recovered():
            logger.warning("the store of the limits answers again")
        if outcome is None:
            self._reservations.restore(requests)
            self._resolve_again(batch)
            return
        unsettled = deque(zip(batch, requests, outcome, strict=True))
        try:
            self._decisions.settle(unsettled)
        finally:
            self._inbox.extendleft(task for (task, _), _, _ in reversed(unsettled))

    def _store_failed(self, error: StoreUnavailable, batch: Batch) -> None:
        self._stats.store_errors += 1
        if self._breaker.failed(self._worker.monotonic()):
            logger.error("%s; on_store_error=%r until it answers", error, self._breaker.policy)
        if self._breaker.policy != "hold":
            # Nobody waits for the store, so nobody waits for their turn to ask it either.
            self._inbox.extend(self._everybody(batch))
            return
        for task, queue in batch:
            if queue is None:
                self._prechecks.without_store(task)
        for task, queue in reversed(batch):
            if queue is not None:
                task.retry_at = self._breaker.until
                queue.put_back([task])

    def _resolve_again(self, batch: Batch) -> None:
        self._prechecks.forget()
        # Under the new limits it may be another bucket that binds, or none: everybody queues up anew, in their order.
        self._inbox.extend([task for task in self._everybody(batch) if self._renew(task)])

    def _everybody(self, batch: Batch) -> list[PendingTask]:
        """Take all who are here out of where they stand, in the order in which they came."""
        newcomers = [self._inbox.popleft() for _ in range(len(self._inbox))]
        waiting = [*(task for task, _ in batch), *self._hold_queues.clear(), *newcomers]
        return sorted(waiting, key=attrgetter("received_at"))

    def _renew(self, task: PendingTask) -> bool:
        try:
            task.policy = self._resolve(task.request, task.queue)
        except BucketflowError as error:
            self._actions.give_up(task, error)
            return False
        task.retry_at = 0.0
        return self._prechecks.can_start(task)

    def _sweep(self) -> None:
        now = self._worker.monotonic()
        if now < self._next_sweep:
            return
        self._next_sweep = now + SWEEP
        old = {task for task in self._hold_queues if now - task.received_at > self._max_hold}
        self._hold_queues.remove({task for task in old if self._actions.requeue(task)})
