"""
The prefetch window of a worker whose queues run dry: the broker keeps the backlog, the other queues keep flowing.

A held message stays unacknowledged, so it fills the window and the worker stops fetching: that is the back-pressure.
Where the worker consumes several queues, one dry queue must not fill the window of all. Each held message then widens
the window by one, and a queue that fills a window of its own is not consumed until half of it has gone.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

from celery.utils.quorum_queues import detect_quorum_queues
from celery.worker import state

from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.config.levels import Level

__all__ = ["PrefetchWindow"]


class PrefetchWindow:
    """
    Keeps room in the window of a consumer.

    Args:
        consumer: Celery's ``Consumer``, connected.
    """

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        # RabbitMQ without global QoS (quorum queues): every queue has a window of its own, and it cannot be changed.
        amqp = consumer.connection.transport.driver_type == "amqp"
        self._shared = bool(consumer.initial_prefetch_count) and (not amqp or _is_global(consumer))
        self._lock = threading.Lock()
        # By held task: how far the window was widened for it, and whether it counts towards pausing its queue.
        self._widened: dict[PendingTask, tuple[int, bool]] = {}
        self._held: Counter[str] = Counter()
        self._paused: set[str] = set()

    def widen(self, task: PendingTask, level: Level | None) -> None:
        """Make room for another message where *task*, held by *level*, would keep it from starting."""
        if not self._shared or not self._blocks_others(level):
            return
        with self._lock:
            before = self._consumer.qos.value
            counts = level is None or level.blocks_queue
            self._widened[task] = self._consumer.qos.increment_eventually() - before, counts
            state.reserved_requests.discard(task.request)  # worker_disable_prefetch counts these instead
            if counts:
                self._held[task.queue] += 1
                self._pause_or_resume(task.queue)

    def narrow(self, task: PendingTask) -> None:
        """Take the room back, if any was made for *task*."""
        with self._lock:
            if task not in self._widened:
                return
            widened, counts = self._widened.pop(task)
            if not task.request.acknowledged:
                state.reserved_requests.add(task.request)
            if widened:
                self._consumer.qos.decrement_eventually(widened)
            if counts:
                self._held[task.queue] -= 1
                self._pause_or_resume(task.queue)

    def _blocks_others(self, level: Level | None) -> bool:
        if level is not None and ((not level.blocks_queue) or level.name == "all"):
            return not level.blocks_queue
        return len(self._consumer.app.amqp.queues.consume_from) > 1

    def _pause_or_resume(self, queue: str) -> None:
        most = self._consumer.initial_prefetch_count
        if queue not in self._paused and self._held[queue] >= most:
            self._paused.add(queue)
            self._consumer.call_soon(self._pause, queue)
        elif queue in self._paused and self._held[queue] <= most // 2:
            self._paused.discard(queue)
            self._consumer.call_soon(self._resume, queue)

    def _pause(self, queue: str) -> None:
        if self._consumer.task_consumer is not None and queue in self._paused:
            self._consumer.task_consumer.cancel_by_queue(queue)

    def _resume(self, queue: str) -> None:
        task_consumer, queues = self._consumer.task_consumer, self._consumer.app.amqp.queues
        # The user may have cancelled the queue meanwhile.
        if task_consumer is None or queue in self._paused or queue not in queues.consume_from:
            return
        if not task_consumer.consuming_from(queue):
            task_consumer.add_queue(queues[queue])
            task_consumer.consume()


def _is_global(consumer: Any) -> bool:
    if hasattr(consumer, "qos_global"):
        return bool(consumer.qos_global)
    # Celery before 5.7 keeps nowhere what it decided.
    return not detect_quorum_queues(consumer.app, consumer.connection.transport.driver_type)[0]
