"""
Prefetch window (AMQP ``basic.qos``) of a worker that holds messages: back-pressure for one queue, not for the others.

A held message stays unacknowledged and takes up the prefetch window. The window fills, the worker stops fetching, and
the backlog stays with the broker. Where other messages could start, a held message must not stop them:

- Each held message widens the window by one, until the message is not held any more.
- A queue whose held messages would fill a window of their own is paused. It is resumed when half of them have gone.
"""

from __future__ import annotations

import threading
from collections import Counter
from math import inf
from typing import Any

from celery.utils.quorum_queues import detect_quorum_queues

from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.config.levels import Level
from bucketflow_celery.worker.held_requests import HeldRequests

__all__ = ["PrefetchWindow"]


class PrefetchWindow:
    """
    Widens and narrows the prefetch window of a consumer, and pauses and resumes its queues.

    Args:
        consumer: Celery's ``Consumer``, connected.
        held_requests: Where the requests of held messages are recorded.
        hold_limit: Most messages to hold for tenants and task types.

    Attributes:
        hold_limit: As given. A window that cannot be widened keeps half of itself for others. One that is unlimited
            fills the worker in any case, so there is no limit.
        can_hold_many: Whether held messages leave room for others: the window can be widened, or is unlimited.
    """

    def __init__(self, consumer: Any, held_requests: HeldRequests, hold_limit: float = inf) -> None:
        self._consumer = consumer
        self._held_requests = held_requests
        # Without global QoS (RabbitMQ's quorum queues) every queue has a window of its own, which cannot be changed.
        amqp = consumer.connection.transport.driver_type == "amqp"
        self._is_shared = bool(consumer.initial_prefetch_count) and (not amqp or _is_global(consumer))
        self.can_hold_many = self._is_shared or not consumer.initial_prefetch_count
        self.hold_limit = hold_limit if consumer.initial_prefetch_count else inf
        if not self.can_hold_many:
            self.hold_limit = min(hold_limit, consumer.initial_prefetch_count // 2)
        self._lock = threading.Lock()
        # Held task -> by how much it widened the window, and whether it counts towards pausing its queue.
        self._widened: dict[PendingTask, tuple[int, bool]] = {}
        self._held: Counter[str] = Counter()
        self._paused: set[str] = set()

    def widen(self, task: PendingTask, level: Level | None, *, can_leave: bool = True) -> None:
        """
        Widen the window for a held task, if other messages could start while it is held.

        Args:
            task: The task.
            level: The level that refused it; ``None`` while the store is unavailable.
            can_leave: Whether it could go back to the end of its queue. If not, no more messages are held than
                ``hold_limit``: the window fills, and the backlog stays with the broker.
        """
        others_can_start = self._is_shared and self._others_can_start(level)
        with self._lock:
            self._held_requests.add(task.request, is_blocking=not others_can_start)
            if not others_can_start:
                return
            before = self._consumer.qos.value
            blocks_queue = level is None or level.blocks_queue
            is_full = not can_leave and len(self._widened) >= self.hold_limit
            self._widened[task] = 0 if is_full else self._consumer.qos.increment_eventually() - before, blocks_queue
            if blocks_queue:
                self._held[task.queue] += 1
                self._pause_or_resume(task.queue)

    def narrow(self, task: PendingTask) -> None:
        """Undo :meth:`widen` for *task*. A task that did not widen the window is ignored."""
        with self._lock:
            self._held_requests.discard(task.request)
            if task not in self._widened:
                return
            widened, blocks_queue = self._widened.pop(task)
            if widened:
                self._consumer.qos.decrement_eventually(widened)
            if blocks_queue:
                self._held[task.queue] -= 1
                self._pause_or_resume(task.queue)

    def _others_can_start(self, level: Level | None) -> bool:
        if level is not None and not level.blocks_queue:
            return True  # other tasks of the same queue
        if level is not None and level.name == "all":
            return False
        return len(self._consumer.app.amqp.queues.consume_from) > 1

    def _pause_or_resume(self, queue: str) -> None:
        prefetch_count = self._consumer.initial_prefetch_count
        if queue not in self._paused and self._held[queue] >= prefetch_count:
            self._paused.add(queue)
            self._consumer.call_soon(self._pause, queue)
        elif queue in self._paused and self._held[queue] <= prefetch_count // 2:
            self._paused.discard(queue)
            self._consumer.call_soon(self._resume, queue)

    def _pause(self, queue: str) -> None:
        if self._consumer.task_consumer is not None and queue in self._paused:
            self._consumer.task_consumer.cancel_by_queue(queue)

    def _resume(self, queue: str) -> None:
        task_consumer, queues = self._consumer.task_consumer, self._consumer.app.amqp.queues
        # The user may have cancelled the queue since it was paused.
        if task_consumer is None or queue in self._paused or queue not in queues.consume_from:
            return
        if not task_consumer.consuming_from(queue):
            task_consumer.add_queue(queues[queue])
            task_consumer.consume()


def _is_global(consumer: Any) -> bool:
    if hasattr(consumer, "qos_global"):
        return bool(consumer.qos_global)
    # Celery before 5.7 does not store its decision.
    return not detect_quorum_queues(consumer.app, consumer.connection.transport.driver_type)[0]
