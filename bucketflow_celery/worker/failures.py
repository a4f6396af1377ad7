"""
Tasks that fail without running end outside of the worker's event loop.

Two threads, one task at a time each. The first stores the result; then the message is acknowledged in the loop. The
second calls errbacks, hooks and signals, which may take any time. While the second has too many tasks waiting, the
first waits for it: messages stay unacknowledged, and the worker stops fetching.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any

from kombu.exceptions import EncodeError

from bucketflow.errors import BucketflowError, CostExceedsCapacity
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.config import rules
from bucketflow_celery.errors import ThrottleTimeout
from bucketflow_celery.store.circuit_breaker import CircuitBreaker
from bucketflow_celery.worker.failure_hooks import call_hooks, info_of, store_failure
from bucketflow_celery.worker.serial_thread import SerialThread

__all__ = ["FailedTask", "FailureService"]

logger = logging.getLogger("bucketflow_celery.worker")

#: Most tasks whose errbacks and hooks wait to be called.
MAX_WAITING_HOOKS = 1000
#: Most parked tasks whose failure waits to be stored. The prefetch window bounds the others.
MAX_WAITING_FAILURES = 1000
#: Longest pause in seconds between two attempts to store a result, while the result backend is away.
LONGEST_PAUSE = 30.0
#: Seconds between two warnings that hooks are too slow.
WARNING_INTERVAL = 60.0


class FailedTask:
    """
    A task that fails without running.

    Args:
        task: The task.
        error: Why it fails.
        waited: Seconds for which it has waited for its limits.
        on_end: Called in the loop, with whether its failure is stored. If not, the caller returns the task.

    Attributes:
        task, error, on_end: As given.
        info: What Celery's hooks receive as ``einfo``.
        is_withdrawn: Whether the broker has the task again, so that it fails there.
    """

    def __init__(
        self, task: PendingTask, error: BucketflowError, waited: float, on_end: Callable[[FailedTask, bool], None]
    ) -> None:
        self.task = task
        self.error = error
        self.info = info_of(error)
        self.on_end = on_end
        self.is_withdrawn = False
        self._waited = waited

    @property
    def request(self) -> Any:
        """Celery's request."""
        return self.task.request

    @property
    def is_parked(self) -> bool:
        """Whether it was dispatched from the backlog: no broker delivers it again."""
        return getattr(self.request, "is_parked", False)

    def log(self) -> None:
        """Log that it has failed."""
        error, policy, level, wait = self.error, self.task.policy, "-", self._waited
        if isinstance(error, ThrottleTimeout):
            level, wait = error.level, error.wait
        elif isinstance(error, CostExceedsCapacity):
            level = next((one.name for one in policy.path if one.key == error.key), level)
        tenant = policy.tenant or self.request.request_dict.get(rules.HEADER) or "-"
        logger.warning(
            "task failed without running: task=%s id=%s tenant=%s level=%s wait=%.3f s error=%s: %s",
            self.request.name,
            self.request.id,
            tenant,
            level,
            wait,
            type(error).__name__,
            error,
            extra={"data": {"tenant": tenant, "level": level, "wait": wait}},
        )


class FailureService:
    """
    Ends failed tasks for one worker process, over its connections to the broker.

    Args:
        call_soon: Runs a callback in the worker's loop. Any thread may call it.
    """

    def __init__(self, call_soon: Callable[[Callable[[], None]], None]) -> None:
        self._call_soon = call_soon
        self._results: SerialThread[FailedTask] = SerialThread("bucketflow-failures", self._store)
        self._hooks: SerialThread[FailedTask] = SerialThread("bucketflow-hooks", self._call_hooks, MAX_WAITING_HOOKS)
        self._unsettled: dict[FailedTask, None] = {}  # in order; only the loop changes it
        self._ended: deque[tuple[FailedTask, bool]] = deque()
        self._warns_from = 0.0
        self._breaker = CircuitBreaker()
        self._breaker.longest_pause = LONGEST_PAUSE

    @property
    def is_ready(self) -> bool:
        """Whether parked tasks may fail now."""
        return len(self._unsettled) < MAX_WAITING_FAILURES and self._breaker.open_until <= monotonic()

    @property
    def pause(self) -> float:
        """Seconds until a task whose failure could not be stored should fail again; at least 1."""
        return max(1.0, self._breaker.open_until - monotonic())

    def add(self, failed: FailedTask) -> None:
        """End *failed*. In the loop."""
        self._unsettled[failed] = None
        self._results.put(failed)

    def withdraw(self, timeout: float) -> list[PendingTask]:
        """
        Return the tasks of the broker whose failure is not stored: the caller leaves them to it. In the loop.

        Args:
            timeout: Seconds to wait for those that are on their way; 0 if the connection is lost, because then no
                message can be acknowledged.
        """
        if self._unsettled and timeout > 0:
            self._results.join(timeout)
            self._deliver()
        withdrawn = [failed for failed in self._unsettled if not failed.is_parked]
        for failed in withdrawn:
            failed.is_withdrawn = True
            del self._unsettled[failed]
        return [failed.task for failed in withdrawn]

    def close(self, timeout: float) -> None:
        """Wait for at most *timeout* seconds until all failures are stored and all hooks called. In the loop."""
        deadline = monotonic() + timeout
        self._results.join(timeout)
        self._deliver()
        if not self._hooks.join(max(0.0, deadline - monotonic())):
            ids = ", ".join(failed.request.id for failed in self._hooks.clear())
            logger.warning("worker ends while a hook of a failed task runs, others are not called: ids=%s", ids)

    def _store(self, failed: FailedTask) -> None:
        if failed.is_withdrawn:
            return
        if self._breaker.open_until > monotonic():
            self._report(failed, is_stored=False)
            return
        try:
            store_failure(failed.request, failed.error, failed.info)
        except EncodeError:  # nor could it be stored at any other time; Celery gives up as well
            logger.exception("failure of task cannot be stored: id=%s", failed.request.id)
        except Exception:
            logger.exception("failure of task cannot be stored: id=%s", failed.request.id)
            self._breaker.record_failure(monotonic())
            self._report(failed, is_stored=False)
            return
        self._breaker.record_success()
        if failed.is_withdrawn:
            return
        failed.log()
        self._warn_if_full()
        self._hooks.put(failed)
        self._report(failed, is_stored=True)

    def _warn_if_full(self) -> None:
        now = monotonic()
        if self._hooks.is_full and now >= self._warns_from:
            self._warns_from = now + WARNING_INTERVAL
            logger.warning(
                "hooks of failed tasks are too slow, messages of further ones wait: tasks=%d", len(self._hooks)
            )

    def _call_hooks(self, failed: FailedTask) -> None:
        call_hooks(failed.request, failed.error, failed.info)
        failed.error.__traceback__ = None  # its frames refer to the request

    def _report(self, failed: FailedTask, *, is_stored: bool) -> None:
        self._ended.append((failed, is_stored))
        self._call_soon(self._deliver)

    def _deliver(self) -> None:
        while self._ended:
            failed, is_stored = self._ended.popleft()
            if failed in self._unsettled:
                del self._unsettled[failed]
                try:
                    failed.on_end(failed, is_stored)
                except Exception:  # raised from here, it would end the worker's loop
                    logger.exception("failed task cannot be acknowledged: id=%s", failed.request.id)
