"""
Admission control in front of a worker's pool: which tasks are asked for, and when.

A task is asked for only when a slot is free, so that no waiting task holds tokens. A refusal by ``all`` or a queue
blocks the whole queue: its tasks are held, and only the head asks again, once, when the store said that tokens come.
Tasks refused by their tenant or task type are deferred: they return to the broker with a ticket.
``decisions.py`` applies what the store decides.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from math import inf
from typing import Final, NamedTuple

from bucketflow.errors import StoreUnavailable
from bucketflow_celery.admission.actions import TaskActions
from bucketflow_celery.admission.decisions import Batch, DecisionHandler
from bucketflow_celery.admission.hold_queues import HoldQueues
from bucketflow_celery.admission.interfaces import NoParking, Parking, WaitLimits, Worker
from bucketflow_celery.admission.local_limits import LocalLimits
from bucketflow_celery.admission.overdue import MAX_SLOT_WAIT, OverdueTasks
from bucketflow_celery.admission.overflow import Overflow
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.admission.prechecks import Prechecks
from bucketflow_celery.admission.priorities import Priorities
from bucketflow_celery.admission.resolution import PolicyResolver
from bucketflow_celery.scheduling.admit import AdmissionRequest
from bucketflow_celery.store.calls import CallRunner, StoreClient, WorkerContext
from bucketflow_celery.store.interfaces import StaleLimits

__all__ = ["AdmissionController"]

logger = logging.getLogger("bucketflow_celery.admission")

#: Most tasks asked for in one call.
MAX_BATCH = 64


class _Asked(NamedTuple):
    """The tasks of a call, and its requests; same length and order."""

    batch: Batch
    requests: Sequence[AdmissionRequest]

    @property
    def tasks(self) -> list[PendingTask]:
        return [task for task, _ in self.batch]


class AdmissionController:
    """
    Admission in one worker, on one connection to its broker.

    Args:
        worker: The worker.
        context: What its components share.
        runner: Runs calls to the store.
        wait_limits: The longest waits outside of the queue.
        local: Decides while the store is away, under ``on_store_error="local"``; by default, as the settings say.

    Attributes:
        actions: Acts on tasks.
        prechecks: Decides about tasks without a call.
        priorities: Lets urgent tasks start before less urgent ones.
        held: Returns each held task, and the level of its hold queue.
    """

    def __init__(
        self,
        worker: Worker,
        context: WorkerContext,
        runner: CallRunner,
        wait_limits: WaitLimits,
        local: LocalLimits | None = None,
    ) -> None:
        settings, self._store, self._limits, self._stats = context
        self._worker = worker
        self._client: StoreClient[_Asked] = StoreClient(logger, runner, context, self.run, worker.monotonic)
        self._breaker = self._client.breaker
        self._local = local or LocalLimits(settings)
        self._local.prepare(self._breaker)
        self._version = self._limits.version  # the one that the policies of all tasks here come from
        # Other threads append to it at any time, so it is never replaced, and iterated only as a copy.
        self._inbox: Final[deque[PendingTask]] = deque()
        queues = self._hold_queues = HoldQueues()
        self.held = queues.by_level
        self._parking: Parking = NoParking()
        self._parking_first = False
        self._limits.checked_at = -inf
        self._round_lock = threading.Lock()
        self._again = self._closed = False
        self.actions = TaskActions(worker, self._stats, self._limits, wait_limits)
        self.prechecks = Prechecks(queues, self.actions, self._breaker, self._local, worker.monotonic)
        self._resolver = PolicyResolver(self._inbox, queues, self.actions, self.prechecks, worker)
        self.priorities = Priorities(queues, self.actions)
        self._overflow = Overflow(queues, self.actions, worker)
        self._decisions = DecisionHandler(queues, self.actions, self.prechecks, self.priorities, self._overflow)
        self._overdue = OverdueTasks(self._inbox, queues, self.actions, worker, wait_limits)

    def open(self, parking: Parking) -> None:
        """Park tasks in *parking*, and let it dispatch."""
        self._parking = self.prechecks.parking = parking
        self.run()

    def submit(self, task: PendingTask) -> None:
        """Admit *task* when its limits allow: from here on it starts, waits, leaves the worker, or fails."""
        if not self._resolver.resolve(task):
            return
        self._inbox.append(task)
        # While a call is in flight no other can be sent: the round that takes its reply asks for all new tasks.
        if self._can_ask():
            self.run()

    def run(self) -> None:
        """Run rounds until there is nothing to do. Any thread may call; one at a time works for all of them."""
        self._again = True
        while self._again and not self._closed and self._round_lock.acquire(blocking=False):
            try:
                while self._again and not self._closed:
                    self._again = False
                    self._round()
            finally:
                self._round_lock.release()

    def stop(self) -> None:
        """Stop admitting tasks. Async-signal-safe: only sets a flag."""
        self._closed = True

    def close(self) -> list[PendingTask]:
        """Stop, and return the tasks that were waiting: the caller leaves them to the broker."""
        self.stop()
        with self._round_lock:
            asked = self._client.drop()
            waiting = list(self._resolver.take_all([] if asked is None else asked.tasks))
            self._stats.waiting = 0
        self._client.close()
        return waiting

    def _round(self) -> None:
        self._on_reply()
        self._parking.on_reply()
        if self._free() > 0:  # when slots are scarce, new tasks and parked ones go first in turns
            self._parking_first = not self._parking_first
            self._overdue.slot_seen_at = self._worker.monotonic()
        if self._parking_first:
            self._parking.work(self._free)
        self._check_version()
        self._park_without_asking()
        while self._can_ask() and (free := self._free()) > 0:
            batch = self._collect(min(free, MAX_BATCH))
            if batch is None:
                break
            self._ask(batch)
        self._parking.work(self._free)
        if self._inbox or len(self._hold_queues):
            self._overdue.work(self._worker.monotonic())
        if self._client.context is None:  # else tasks that arrive meanwhile may join these queues
            self._hold_queues.prune()
        self._stats.waiting = len(self._hold_queues) + len(self._inbox)
        self._schedule_next_round()

    def _can_ask(self) -> bool:
        """Return whether tasks can be asked for: no call is in flight, or this worker's own buckets decide."""
        return self._client.context is None or self._local.is_active

    def _free(self) -> int:
        """Return the number of free slots that no call in flight may fill."""
        asked = self._client.context
        return self._worker.free() - (0 if asked is None else len(asked.batch)) - self._parking.reserved_slots

    def _schedule_next_round(self) -> None:
        now = self._worker.monotonic()
        wake_at = self._next_ask_at(now) if self._can_ask() else inf
        if self._client.context is None and (self._local.is_active or self._inbox or len(self._hold_queues)):
            check_at = 0.0 if self._local.is_active else self._limits.next_check
            wake_at = min(wake_at, max(check_at, self._breaker.open_until))
        parking_at = self._parking.next_work_at()
        if parking_at is not None and parking_at <= now:
            self._run_when_free()
        elif parking_at is not None:
            wake_at = min(wake_at, parking_at)
        if wake_at < inf:
            self._worker.call_after(max(0.001, wake_at - now), self.run)

    def _next_ask_at(self, now: float) -> float:
        """Return when to ask for, park or return a task next; what can be asked for at *now* waits for a free slot."""
        retry_at = max(self._hold_queues.next_retry_at(), 0.0 if self._local.is_active else self._breaker.open_until)
        if self._inbox or retry_at <= now:
            self._run_when_free()
        wake_at = retry_at if retry_at > now else inf
        parkable = self.prechecks.first_parkable(self._inbox)
        if parkable is not None:
            wake_at = min(wake_at, max(parkable.received_at + MAX_SLOT_WAIT, self._breaker.open_until))
        if self._inbox or len(self._hold_queues):
            wake_at = min(wake_at, self._overdue.next_work_at(now))
        return wake_at

    def _run_when_free(self) -> None:
        if self._free() > 0:  # a slot became free during the round
            self._again = True
        elif self._worker.free() <= 0:  # else a reply will start the next round
            self._worker.when_free(self.run)

    def _collect(self, limit: int) -> Batch | None:
        """Take up to *limit* tasks to ask for; ``None`` if there is nothing to do."""
        now = self._worker.monotonic()
        batch: Batch = []
        if self._breaker.open_until <= now or self._local.is_active:
            for queue in self._hold_queues.ready(now):
                taken = queue.take_ready(now, limit - len(batch))
                if queue.level is None:
                    self._inbox.extendleft(reversed(taken))
                else:
                    taken = [task for task in taken if not self._overflow.takes(task, queue)]
                    batch += [self.priorities.first(task, queue, now) for task in taken]
        if not batch and not self._inbox:
            return None
        while self._inbox and len(batch) < min(limit, self._free()):
            task = self._inbox.popleft()
            may_go = task.policy.on_limit == "hold"
            if self.prechecks.must_ask(task, now) and not (may_go and self._overflow.takes(task)):
                batch.append(self.priorities.first(task, None, now) if task.reservations else (task, None))
        return batch

    def _park_without_asking(self) -> None:
        """Park tasks that would be refused in any case, and those that have waited too long for a slot."""
        now = self._worker.monotonic()
        if not self._parking.is_open or self._client.context is not None or self._breaker.open_until > now:
            return
        received_before = now - MAX_SLOT_WAIT if self._free() <= 0 else -inf
        self.prechecks.park_early(self._inbox, received_before, now)

    def _check_version(self) -> None:
        """Compare the version of the limits, if that is due, or find out whether a store that was away answers."""
        now = self._worker.monotonic()
        is_due = self._local.is_active or self._limits.needs_check(now)
        if self._client.context is None and self._breaker.open_until <= now and is_due:
            self._send([], [])

    def _ask(self, batch: Batch) -> None:
        batch = [(task, queue) for task, queue in batch if not self.actions.has_ended(task)]
        if batch:
            requests = [self._hold_queues.request(task, self.actions.begin_waiting(task)) for task, _ in batch]
            if self._local.is_active:
                decisions = self._local.admit(requests, self._worker.monotonic())
                self._decisions.apply(self._inbox, batch, requests, decisions)
            else:
                self._send(batch, requests)

    def _send(self, batch: Batch, requests: Sequence[AdmissionRequest]) -> None:
        self._limits.checked_at, self._limits.is_stale = self._worker.monotonic(), False
        asked = _Asked(batch, requests)
        if self._limits.version != self._version:  # another component has refreshed them
            self._hold_queues.restore(requests)
            self._resolve_all(asked.tasks)
            return
        self._client.send(self._store.admit(requests, self._version), asked, inline=bool(requests and self._inbox))
        self._on_reply()

    def _on_reply(self) -> None:
        """Act on the reply to the call in flight, if there is one."""
        taken = self._client.take(f"on_store_error={self._local.on_store_error!r}")
        if taken is None:
            return
        asked, reply = taken
        if isinstance(reply, StaleLimits):
            self._hold_queues.restore(asked.requests)
            self._resolve_all(asked.tasks)
        elif isinstance(reply, StoreUnavailable):
            self._hold_queues.restore(asked.requests)
            if not self._local.is_active:
                self._on_failure(asked.batch)
        elif asked.batch:
            self._decisions.apply(self._inbox, *asked, reply)
        if self._local.follow(self._breaker, self._worker.monotonic()):
            self._resolve_all([])
        if owed := self._local.take_owed():  # the next round takes the reply
            self._client.send(self._store.charge(owed), _Asked([], []))

    def _resolve_all(self, taken: Iterable[PendingTask]) -> None:
        self._version = self._limits.version
        self._overflow.forget_crowded()
        self._resolver.resolve_all(taken)

    def _on_failure(self, batch: Batch) -> None:
        if self._local.on_store_error != "hold":
            # No task waits for the store, so no task keeps its place in a queue for the store's tokens either.
            self._inbox.extendleft(reversed(self._resolver.take_all(task for task, _ in batch)))
            return
        for task, queue in batch:
            if queue is None:
                self.prechecks.without_store(task)
        for task, queue in reversed(batch):
            if queue is not None:
                task.retry_at = self._breaker.open_until
                queue.put_back([task])
