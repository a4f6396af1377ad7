"""The worker port of admission, implemented on Celery's consumer, pool and requests."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from celery.worker import state

from bucketflow.errors import BucketflowError
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.config.levels import Level, ThrottlePolicy
from bucketflow_celery.config.table import pause_name
from bucketflow_celery.messages import codec
from bucketflow_celery.messages.origin import most_likely, queues_of
from bucketflow_celery.messages.republisher import Republisher
from bucketflow_celery.scheduling.ticket import HEADER, NO_TICKET, Ticket
from bucketflow_celery.signals import task_throttled
from bucketflow_celery.worker.copy_refusals import CopyRefusals
from bucketflow_celery.worker.event_loop import LoopWaker
from bucketflow_celery.worker.events import send_refused
from bucketflow_celery.worker.failures import FailedTask, FailureService
from bucketflow_celery.worker.prefetch_window import PrefetchWindow
from bucketflow_celery.worker.purged_tasks import PurgedTasks
from bucketflow_celery.worker.queueing_delay import QueueingDelay
from bucketflow_celery.worker.refusal_log import RefusalLog
from bucketflow_celery.worker.slots import Slots

__all__ = ["CeleryWorker"]

logger = logging.getLogger("bucketflow_celery.worker")

#: Seconds for which a worker that shuts down waits until failures are stored.
FAILURE_TIMEOUT = 5.0


class CeleryWorker:
    """
    Implements :class:`bucketflow_celery.admission.interfaces.Worker` on one connection to the broker.

    Args:
        consumer: Celery's ``Consumer``, connected.
        slots: The slots of its pool.
        window: Its prefetch window.
        republisher: Publishes copies of messages.
        waker: Calls back in the worker's loop.
        failures: Ends tasks that fail without running.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - each is a part of its own
        self,
        consumer: Any,
        slots: Slots,
        window: PrefetchWindow,
        republisher: Republisher,
        waker: LoopWaker,
        failures: FailureService,
    ) -> None:
        self._consumer = consumer
        self._slots = slots
        self._window = window
        self._republisher = republisher
        self._failures = failures
        self._timer = waker.timer
        self._timer_entry: Any = None
        self._wake_at = float("inf")
        self._refusal_log = RefusalLog(waker.timer.call_after)
        self._copy_refusals = CopyRefusals(time.monotonic)
        # Bound directly: these are called for every task.
        self.release = window.narrow
        self.free = slots.free
        self.when_free = slots.when_free
        self._received: Counter[str] = Counter()  # by queue
        self._queueing_delay = QueueingDelay(republisher.messages_in, self._received.__getitem__, time.monotonic)
        self.can_hold_many = window.can_hold_many
        self.keeps_deferred = not republisher.delayed
        self.hold_limit = window.hold_limit
        self.queueing_delay = self._queueing_delay.of
        purged = PurgedTasks(consumer, self.acknowledge)
        self.drop, self.end_purged = purged.drop, purged.end
        self.is_purged = purged.is_purged
        self.call_soon = waker.call_soon
        self.monotonic = time.monotonic
        self.time = time.time

    def pending_task(self, request: Any) -> PendingTask:
        """Return the task of Celery's *request*: its queue, its ticket, and whether it can be parked."""
        message = request.message
        delivery_info = message.delivery_info
        consumed = self._consumer.app.amqp.queues.consume_from
        tags: dict[str, str] = {}
        if "consumer_tag" in delivery_info:
            active = self._consumer.task_consumer._active_tags  # noqa: SLF001 - kombu keeps no public list of them
            tags = {tag: queue for queue, tag in active.items()}
        queues = queues_of(delivery_info, tags, consumed)
        queue = most_likely(queues, delivery_info)
        # A parked message comes back to its queue, so the queue must be certain, and be this worker's.
        is_certain = queues == [queue] and queue in consumed
        ticket = Ticket.read(request.request_dict.get(HEADER))
        self._received[queue] += 1
        expires, eta = request.expires, request.eta if ticket is not NO_TICKET else None
        return PendingTask(
            request,
            queue,
            self.monotonic(),
            ticket.waiting_since,
            dict(ticket.reservations),
            redelivered=delivery_info.get("redelivered"),
            has_returned=ticket is not NO_TICKET,
            due_since=ticket.due_since,
            returned_at=None if eta is None else eta.timestamp(),
            can_park=is_certain and codec.is_complete(message) and not self._is_broadcast(queue),
            expires_at=None if expires is None else expires.timestamp(),
            rank=codec.rank_of(message, highest_first=self._highest_first),
            seen_at=ticket.seen_at,
        )

    @cached_property
    def _highest_first(self) -> bool:
        return bool(self._consumer.connection.transport.driver_type == "amqp")

    def rank_of(self, request: Any) -> int:
        """Return the rank of Celery's *request* by its priority: the lowest comes first."""
        return codec.rank_of(request.message, highest_first=self._highest_first)

    def resolve(self, task: PendingTask) -> ThrottlePolicy:
        """See :class:`~bucketflow_celery.admission.interfaces.Worker`."""
        request = task.request
        policy: ThrottlePolicy = self._consumer.app.bucketflow.active_limits.resolve(
            request.task, request.request_dict, request.args, request.kwargs, task.queue
        )
        return policy

    def start(self, task: PendingTask) -> None:
        """See :class:`~bucketflow_celery.admission.interfaces.Worker`."""
        self._slots.start(task.request)

    def hold(self, task: PendingTask, level: Level | None) -> None:
        """See :class:`~bucketflow_celery.admission.interfaces.Worker`."""
        self._window.widen(task, level, can_leave=self.can_defer(task))

    def is_revoked_or_expired(self, task: PendingTask) -> bool:
        """See :class:`~bucketflow_celery.admission.interfaces.Worker`."""
        if task.reservations:  # RevocationHandler cancels what the header says
            task.request.request_dict[HEADER] = task.ticket().write()
        try:
            return bool(task.request.revoked())
        except Exception:
            # It is not acknowledged, so the broker delivers it again. Raised from here, the error would end the
            # admission of all tasks of the same call.
            logger.exception("end of task cannot be stored: id=%s", task.request.id)
            return True

    def can_defer(self, task: PendingTask) -> bool:
        """See :class:`~bucketflow_celery.admission.interfaces.Worker`."""
        message = task.request.message
        # Protocol 1 has the ETA in its body, and no queue would keep a copy of a broadcast.
        has_copy = "task" in message.headers and not self._is_broadcast(task.queue)
        return has_copy and not self._copy_refusals.expects(task.queue, len(message.body))

    def defer(self, task: PendingTask, countdown: float) -> bool:
        """See :class:`~bucketflow_celery.admission.interfaces.Worker`."""
        if not self.can_defer(task):
            return False
        message = task.request.message
        ticket = task.ticket(_pause_of(task)).write()
        started = self.monotonic()
        try:
            lead = self._queueing_delay.of(task.queue) if self._republisher.delayed else 0.0
            self._republisher.publish(message, task.queue, countdown, ticket, lead)
            self._queueing_delay.record_copy(self.monotonic() - started)
        except Exception as error:  # noqa: BLE001 - whatever the transport raises, the task is safe in this worker
            self._republisher.close()
            if not self._copy_refusals.record(task.queue, len(message.body), error):
                id_ = task.request.id
                logger.warning("broker did not accept deferred task, it stays held: id=%s error=%r", id_, error)
            return False
        self._copy_refusals.forget(task.queue, len(message.body))
        self.acknowledge(task.request)
        return True

    def requeue(self, task: PendingTask) -> bool:
        """See :class:`~bucketflow_celery.admission.interfaces.Worker`."""
        if self._republisher.delayed:
            return self.defer(task, 0.0)  # quorum queues count requeues, and drop a message after so many
        if self._is_broadcast(task.queue):
            return False
        self._reject(task.request)
        return True

    def fail(self, task: PendingTask, error: BucketflowError) -> None:
        """See :class:`~bucketflow_celery.admission.interfaces.Worker`."""
        waited = 0.0 if task.waiting_since is None else max(0.0, self.time() - task.waiting_since)
        self._failures.add(FailedTask(task, error, waited, self._on_failed))

    def record_refusal(self, task: PendingTask, level: Level, wait: float) -> None:
        """See :class:`~bucketflow_celery.admission.interfaces.Worker`."""
        request = task.request
        facts = {"level": level.name, "key": level.key, "wait": wait}
        logger.debug(
            "%s[%s] refused by %s, %.6f s to wait", request.name, request.id, level.key, wait, extra={"data": facts}
        )
        self._refusal_log.add(level.key, wait)
        if request.eventer is not None and request.eventer.enabled:
            send_refused(request, **facts)
        task_throttled.send(sender=request.task, request=request, level=level.name, wait=wait)

    def call_after(self, seconds: float, callback: Callable[[], None]) -> None:
        """See :class:`~bucketflow_celery.admission.interfaces.Worker`."""
        at = self.monotonic() + seconds
        if at >= self._wake_at:
            return
        self._cancel_timer()

        def wake() -> None:
            self._timer_entry, self._wake_at = None, float("inf")
            callback()

        self._wake_at = at
        self._timer_entry = self._timer.call_after(seconds, wake)

    def close(self, tasks: Sequence[PendingTask], *, connected: bool) -> None:
        """
        Leave *tasks* to the broker at once, so that other workers need not wait for this one to end.

        Args:
            tasks: The tasks that were waiting. Those with reservations are deferred.
            connected: Whether the broker is connected; if not, it delivers unacknowledged messages again by itself.
        """
        self._cancel_timer()
        self._refusal_log.flush()
        can_defer, now = connected, self.monotonic()
        for task in [*tasks, *self._failures.withdraw(FAILURE_TIMEOUT if connected else 0.0)]:
            # Requeued, a task would lose its reservations.
            if can_defer and task.can_go_elsewhere and self.can_defer(task):
                can_defer = self.defer(task, task.time_to_retry(now))
                if can_defer:
                    continue
            if connected:
                self._reject(task.request)
            else:
                state.task_ready(task.request)
        self._republisher.close()

    def acknowledge(self, request: Any) -> None:
        """Acknowledge the message of *request*, at once."""
        # A request's own acknowledge() waits for the loop's next turn, and the window stays full while the loop sleeps.
        state.task_ready(request)
        request.acknowledged = True
        request.message.ack_log_error(logger, request.connection_errors)

    def _on_failed(self, failed: FailedTask, is_stored: bool) -> None:  # noqa: FBT001 - a callback
        """Do what Celery does for a task that has failed in the pool; or return the task."""
        request = failed.request
        if is_stored:
            task = request.task
            # Celery before 5.7 has one option for failures and time limits.
            acks = not task.acks_late or getattr(task, "acks_on_failure", task.acks_on_failure_or_timeout)
            if acks and failed.is_parked:
                request.acknowledge()
            elif acks:
                self.acknowledge(request)
            request.on_failure(failed.info, return_ok=True)
        elif failed.is_parked:
            request.reject(requeue=True)
        # Until its ETA it leaves the prefetch window to others.
        elif not self.defer(failed.task, self._failures.pause):
            self._timer.call_after(self._failures.pause, lambda: self.fail(failed.task, failed.error))

    def _reject(self, request: Any) -> None:
        state.task_ready(request)
        request.acknowledged = True
        request.message.reject_log_error(logger, request.connection_errors, requeue=True)

    def _is_broadcast(self, name: str) -> bool:
        """Return whether the queue *name* gives each worker a copy of its own."""
        queue = self._consumer.app.amqp.queues.get(name)
        return queue is not None and queue.exchange is not None and queue.exchange.type == "fanout"

    def _cancel_timer(self) -> None:
        entry, self._timer_entry, self._wake_at = self._timer_entry, None, float("inf")
        if entry is not None:
            self._timer.cancel(entry)


def _pause_of(task: PendingTask) -> str | None:
    """Return the name of the pause that *task* waits for."""
    policy = task.policy
    if policy.paused == "tenant":
        return pause_name("tenant", policy.tenant or "")
    return pause_name("task", task.request.name) if policy.paused == "task" else None
