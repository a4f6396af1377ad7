"""The worker as the gate sees it: Celery's consumer, pool and requests behind one small face."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.worker import state

from bucketflow.errors import BucketflowError
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.config.levels import Level
from bucketflow_celery.messages.origin import queue_of, queues_of
from bucketflow_celery.messages.republisher import Republisher
from bucketflow_celery.scheduling.ticket import Ticket
from bucketflow_celery.signals import task_throttled
from bucketflow_celery.worker.prefetch_window import PrefetchWindow
from bucketflow_celery.worker.refusal_log import RefusalLog
from bucketflow_celery.worker.slots import Slots

__all__ = ["CeleryWorker"]

logger = logging.getLogger(__name__)


class CeleryWorker:
    """
    Implements :class:`bucketflow_celery.admission.interfaces.Worker` on one connection to the broker.

    Args:
        consumer: Celery's ``Consumer``, connected.
        slots: The slots of its pool.
        window: Its prefetch window.
        republisher: Publishes copies.
        timer: Calls back: see :func:`bucketflow_celery.worker.event_loop.timer_of`.
    """

    def __init__(
        self, consumer: Any, slots: Slots, window: PrefetchWindow, republisher: Republisher, timer: Any
    ) -> None:
        self._consumer = consumer
        self._slots = slots
        self._republisher = republisher
        self._timer = timer
        self._timer_entry: Any = None
        self._wake_at = float("inf")
        self.hold = window.widen
        self.release = window.narrow
        self.free = slots.free
        self.when_free = slots.when_free
        self.monotonic = time.monotonic
        self.time = time.time
        self._refusal_log = RefusalLog(time.monotonic)

    def queue_of(self, request: Any) -> str:
        """Return the name of the queue a request most likely came from."""
        return queue_of(*self._origin(request))

    def is_from(self, request: Any, queue: str) -> bool:
        """Return whether a request can have come from *queue* alone, and this worker consumes it."""
        return queues_of(*self._origin(request)) == [queue] and queue in self._consumer.app.amqp.queues.consume_from

    def _origin(self, request: Any) -> tuple[Any, dict[str, str], Any]:
        delivery_info, tags = request.message.delivery_info, {}
        if "consumer_tag" in delivery_info:
            active = self._consumer.task_consumer._active_tags  # noqa: SLF001 - kombu keeps no public list of them
            tags = {tag: queue for queue, tag in active.items()}
        return delivery_info, tags, self._consumer.app.amqp.queues.consume_from

    def start(self, task: PendingTask) -> None:
        """See :class:`~bucketflow_celery.admission.interfaces.Worker`."""
        self._slots.start(task.request)

    def is_revoked_or_expired(self, task: PendingTask) -> bool:
        """See :class:`~bucketflow_celery.admission.interfaces.Worker`."""
        try:
            return bool(task.request.revoked())
        except Exception:
            # As in fail(): not acknowledged, it comes again. Raised from here, it would take all who ask with it along.
            logger.exception("the end of %s could not be stored", task.request.id)
            return True

    def defer(self, task: PendingTask, countdown: float) -> bool:
        """See :class:`~bucketflow_celery.admission.interfaces.Worker`."""
        message = task.request.message
        if "task" not in message.headers or self.is_broadcast(task.queue):
            return False  # protocol 1 keeps the ETA inside its body; a broadcast is in no queue that could keep it
        ticket = Ticket(task.reservations, task.first_refused_at).write()
        try:
            self._republisher.publish(message, task.queue, countdown, ticket)
        except Exception as error:  # noqa: BLE001 - whatever the transport raises, the task stays here and is safe
            logger.warning("%s stays in the worker, the broker did not take it back: %r", task.request.id, error)
            self._republisher.close()
            return False
        self.acknowledge(task.request)
        return True

    def requeue(self, task: PendingTask) -> bool:
        """See :class:`~bucketflow_celery.admission.interfaces.Worker`."""
        if self._republisher.delayed:
            return self.defer(task, 0.0)  # quorum queues count requeues, and drop a message after so many
        if self.is_broadcast(task.queue):
            return False
        self._reject(task.request)
        return True

    def fail(self, request: Any, error: BucketflowError) -> None:
        """See :class:`~bucketflow_celery.admission.interfaces.Worker`."""
        try:
            raise error
        except BucketflowError:
            einfo = ExceptionInfo()
        try:
            request.on_failure(einfo)
        except Exception:
            # Not acknowledged, the broker delivers it again: better twice than a failure nobody hears of.
            logger.exception("the failure of %s could not be stored", request.id)
            return
        request.acknowledge()

    def refused(self, task: PendingTask, level: Level, wait: float) -> None:
        """See :class:`~bucketflow_celery.admission.interfaces.Worker`."""
        request = task.request
        facts = {"level": level.name, "key": level.key, "wait": wait}
        logger.debug(
            "%s[%s] refused by %s, %.6f s to wait", request.name, request.id, level.key, wait, extra={"data": facts}
        )
        self._refusal_log.add(level.key, wait)
        request.send_event("task-throttled", **facts)
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
            tasks: Those who were waiting.
            connected: Whether the broker is there; if not, it delivers again what it has seen no acknowledgement of.
        """
        self._cancel_timer()
        for task in tasks:
            if connected:
                self._reject(task.request)
            else:
                state.task_ready(task.request)
        self._republisher.close()

    def is_broadcast(self, name: str) -> bool:
        """Return whether the queue *name* gives each worker a copy of its own."""
        queue = self._consumer.app.amqp.queues.get(name)
        return queue is not None and queue.exchange is not None and queue.exchange.type == "fanout"

    def acknowledge(self, request: Any) -> None:
        """Let the broker forget the message of *request*, at once."""
        # A request's own acknowledge() waits for the loop's next turn, and the window stays full while it sleeps.
        state.task_ready(request)
        request.acknowledged = True
        request.message.ack_log_error(logger, request.connection_errors)

    def _reject(self, request: Any) -> None:
        state.task_ready(request)
        request.acknowledged = True
        request.message.reject_log_error(logger, request.connection_errors, requeue=True)

    def _cancel_timer(self) -> None:
        task, self._timer_entry, self._wake_at = self._timer_entry, None, float("inf")
        if task is not None:
            self._timer.cancel(task)
