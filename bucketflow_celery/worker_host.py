"""The worker as the gate sees it: Celery's consumer, pool and requests behind one small face."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.worker import state

from bucketflow.errors import BucketflowError
from bucketflow_celery.backlog import Handed, Parcel
from bucketflow_celery.errors import ThrottleTimeout
from bucketflow_celery.limits import Level
from bucketflow_celery.lines import Entry, Passage
from bucketflow_celery.parcel import can_be_parked, is_fresh
from bucketflow_celery.parking import Parking
from bucketflow_celery.queues import queue_of
from bucketflow_celery.republish import Republisher
from bucketflow_celery.signals import task_throttled
from bucketflow_celery.slots import Slots
from bucketflow_celery.summary import Summary
from bucketflow_celery.ticket import Ticket
from bucketflow_celery.window import Window

__all__ = ["WorkerHost"]

logger = logging.getLogger(__name__)


class WorkerHost:
    """
    Implements :class:`bucketflow_celery.host.Host` on one connection to the broker.

    Args:
        consumer: Celery's ``Consumer``, connected.
        slots: The slots of its pool.
        window: Its prefetch window.
        republisher: Publishes copies.
        call_soon: Runs a callback in the worker's own loop; called from any thread.
    """

    def __init__(
        self,
        consumer: Any,
        slots: Slots,
        window: Window,
        republisher: Republisher,
        call_soon: Callable[[Callable[[], None]], None],
    ) -> None:
        self.call_soon = call_soon
        self._consumer = consumer
        self._slots = slots
        self._republisher = republisher
        self._timer_entry: Any = None
        self._wake_at = float("inf")
        self.hold = window.hold
        self.unhold = window.unhold
        self.free = slots.free
        self.when_free = slots.when_free
        self.monotonic = time.monotonic
        self.time = time.time
        self._summary = Summary(time.monotonic)
        self._parking = Parking(consumer)

    def queue_of(self, request: Any) -> str:
        """Return the name of the queue a request came from."""
        delivery_info, tags = request.message.delivery_info, {}
        if "consumer_tag" in delivery_info:
            active = self._consumer.task_consumer._active_tags  # noqa: SLF001 - kombu keeps no public list of them
            tags = {tag: queue for queue, tag in active.items()}
        return queue_of(delivery_info, tags, self._consumer.app.amqp.queues.consume_from)

    def start(self, entry: Entry) -> None:
        """See :class:`~bucketflow_celery.host.Host`."""
        self._slots.start(entry.request)

    def is_gone(self, entry: Entry) -> bool:
        """See :class:`~bucketflow_celery.host.Host`."""
        try:
            return bool(entry.request.revoked())
        except Exception:
            # As in fail(): not acknowledged, it comes again. Raised from here, it would take all who ask with it along.
            logger.exception("the end of %s could not be stored", entry.request.id)
            return True

    def send_back(self, entry: Entry, countdown: float) -> bool:
        """See :class:`~bucketflow_celery.host.Host`."""
        message = entry.request.message
        if "task" not in message.headers or self._is_broadcast(entry.queue):
            return False  # protocol 1 keeps the ETA inside its body; a broadcast is in no queue that could keep it
        ticket = Ticket(entry.dues, entry.since).write()
        try:
            self._republisher.publish(message, entry.queue, countdown, ticket)
        except Exception as error:  # noqa: BLE001 - whatever the transport raises, the task stays here and is safe
            logger.warning("%s stays in the worker, the broker did not take it back: %r", entry.request.id, error)
            self._republisher.close()
            return False
        self._acknowledge(entry.request)
        return True

    def give_back(self, entry: Entry) -> bool:
        """See :class:`~bucketflow_celery.host.Host`."""
        if self._republisher.delayed:
            return self.send_back(entry, 0.0)  # quorum queues count requeues, and drop a message after so many
        if self._is_broadcast(entry.queue):
            return False
        self._reject(entry.request)
        return True

    def fail(self, request: Any, error: BucketflowError) -> None:
        """See :class:`~bucketflow_celery.host.Host`."""
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

    def refused(self, entry: Entry, level: Level, wait: float) -> None:
        """See :class:`~bucketflow_celery.host.Host`."""
        request = entry.request
        facts = {"level": level.name, "key": level.key, "wait": wait}
        logger.debug(
            "%s[%s] refused by %s, %.6f s to wait", request.name, request.id, level.key, wait, extra={"data": facts}
        )
        self._summary.add(level.key, wait)
        request.send_event("task-throttled", **facts)
        task_throttled.send(sender=request.task, request=request, level=level.name, wait=wait)

    def call_after(self, seconds: float, callback: Callable[[], None]) -> None:
        """See :class:`~bucketflow_celery.host.Host`."""
        at = self.monotonic() + seconds
        if at >= self._wake_at:
            return
        self._cancel_timer()

        def wake() -> None:
            self._timer_entry, self._wake_at = None, float("inf")
            callback()

        self._wake_at = at
        self._timer_entry = self._consumer.timer.call_after(seconds, wake)

    def can_park(self, request: Any, queue: str) -> bool:
        """Return whether the message of *request* can wait outside its queue."""
        return can_be_parked(request.message) and not self._is_broadcast(queue)

    def queues(self) -> Iterable[str]:
        """See :class:`~bucketflow_celery.room.RoomHost`."""
        return list(self._consumer.app.amqp.queues.consume_from)

    def is_fresh(self, entry: Entry) -> bool:
        """See :class:`~bucketflow_celery.room.RoomHost`."""
        return is_fresh(entry.request.message)

    def parcel(self, entry: Entry, *, again: bool) -> Parcel | None:
        """See :class:`~bucketflow_celery.room.RoomHost`."""
        try:
            return self._parking.pack(entry, again=again)
        except TypeError as error:
            logger.warning("%s stays in the worker, its headers cannot be parked: %s", entry.request.id, error)
            return None

    def parked(self, entry: Entry, position: int) -> None:
        """See :class:`~bucketflow_celery.room.RoomHost`."""
        if self._consumer.app.bucketflow.settings.parked_state and position > 0:
            self._parking.tell(entry.request, {"position": position})
        self._acknowledge(entry.request)

    def receive(self, handed: Handed, on_end: Callable[[bool], None]) -> Entry | None:
        """See :class:`~bucketflow_celery.room.RoomHost`."""
        received = self._parking.receive(handed, on_end)
        if received is None:
            return None
        request, since = received
        return Entry(request, handed.owned.queue, Passage(()), self.monotonic(), since)

    def give_up(self, entry: Entry) -> None:
        """See :class:`~bucketflow_celery.room.RoomHost`."""
        request, throttle = entry.request, self._consumer.app.bucketflow
        if self.is_gone(entry):
            return
        try:
            passage = throttle.passage(request.task, request.request_dict, request.args, request.kwargs, entry.queue)
        except BucketflowError as error:
            self.fail(request, error)
            return
        waited = 0.0 if entry.since is None else self.time() - entry.since
        if request.expires is not None and (passage.max_wait is None or waited < passage.max_wait):
            # The store's clock is a little ahead of this worker's.
            request._announce_revoked("expired", False, None, True)  # noqa: FBT003, SLF001 - Celery's own way to say so
            return
        level = passage.path[-1].name if passage.path else "queue"
        self.fail(request, ThrottleTimeout(level, waited, passage.max_wait or waited))

    def close(self, entries: Sequence[Entry], *, connected: bool) -> None:
        """
        Leave *entries* to the broker at once, so that other workers need not wait for this one to end.

        Args:
            entries: Those who were waiting.
            connected: Whether the broker is there; if not, it delivers again what it has seen no acknowledgement of.
        """
        self._cancel_timer()
        for entry in entries:
            if connected:
                self._reject(entry.request)
            else:
                state.task_ready(entry.request)
        self._republisher.close()

    def _is_broadcast(self, name: str) -> bool:
        queue = self._consumer.app.amqp.queues.get(name)
        return queue is not None and queue.exchange is not None and queue.exchange.type == "fanout"

    def _acknowledge(self, request: Any) -> None:
        # A request's own acknowledge() waits for the loop's next turn, and the window stays full while it sleeps.
        state.task_ready(request)
        request.acknowledged = True
        request.message.ack_log_error(logger, request.connection_errors)

    def _reject(self, request: Any) -> None:
        state.task_ready(request)
        request.acknowledged = True
        request.message.reject_log_error(logger, request.connection_errors, requeue=True)

    def _cancel_timer(self) -> None:
        entry, self._timer_entry, self._wake_at = self._timer_entry, None, float("inf")
        if entry is not None:
            self._consumer.timer.cancel(entry)
