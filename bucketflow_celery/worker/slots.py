"""How many slots of a worker's pool are free, and when the next one is: one answer for every kind of pool."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

from celery.worker import state

__all__ = ["CountedSlots", "SemaphoreSlots", "Slots", "slots_of"]


class Slots(Protocol):
    """The slots of a pool."""

    def free(self) -> int:
        """Return how many are free."""

    def when_free(self, callback: Callable[[], None]) -> None:
        """Call *callback* when one gets free; asking twice is asking once."""

    def start(self, request: Any) -> None:
        """Run *request* in one of them."""

    def forget(self) -> None:
        """Forget who asked to be called: the connection was lost, and with it who waited."""


class SemaphoreSlots:
    """
    Prefork under the event loop: Celery itself keeps a semaphore of the slots, and waits for it before a task starts.

    Args:
        controller: The ``WorkController``.
    """

    def __init__(self, controller: Any) -> None:
        self._controller = controller
        self._asked = False

    def free(self) -> int:
        """See :class:`Slots`."""
        return int(self._controller.semaphore.value)

    def when_free(self, callback: Callable[[], None]) -> None:
        """See :class:`Slots`."""
        if self._asked:
            return

        def slot_is_free() -> None:
            self._asked = False
            self._controller.semaphore.release()
            callback()

        self._asked = True
        self._controller.semaphore.acquire(slot_is_free)

    def start(self, request: Any) -> None:
        """See :class:`Slots`."""
        self._controller.semaphore.acquire(self._controller._process_task, request)  # noqa: SLF001

    def forget(self) -> None:
        """See :class:`Slots`. Celery has cleared the semaphore, and so the slots of tasks that go on running."""
        self._asked = False
        for _ in state.active_requests:
            self._controller.semaphore.acquire(lambda: None)


class CountedSlots:
    """
    Every other pool: it takes whatever it is given and queues it, so the slots are counted here.

    Celery binds ``pool.apply_async`` into its requests when the consumer starts; made before that, this stands between.

    Args:
        controller: The ``WorkController``.
        call_soon: Runs a callback in the worker's own loop; called from the pool's threads.
    """

    def __init__(self, controller: Any, call_soon: Callable[[Callable[[], None]], None]) -> None:
        self._controller = controller
        self._call_soon = call_soon
        self._lock = threading.Lock()
        self._busy = 0
        self._callback: Callable[[], None] | None = None
        self._submit = controller.pool.apply_async
        controller.pool.apply_async = self._apply_async

    def free(self) -> int:
        """See :class:`Slots`."""
        return int(self._controller.pool.num_processes) - self._busy

    def when_free(self, callback: Callable[[], None]) -> None:
        """See :class:`Slots`."""
        with self._lock:
            if self.free() <= 0:
                self._callback = callback
                return
        self._call_soon(callback)

    def start(self, request: Any) -> None:
        """See :class:`Slots`."""
        self._controller._process_task(request)  # noqa: SLF001

    def forget(self) -> None:
        """See :class:`Slots`."""
        with self._lock:
            self._callback = None

    def _apply_async(self, target: Callable[..., Any], args: Any = (), **options: Any) -> Any:
        finished = _Once(self._finished)
        if self._controller.pool.uses_semaphore:
            # The target runs in another process: only the callbacks come back.
            options["callback"] = finished.after(options["callback"])
            options["error_callback"] = finished.after(options["error_callback"])
        else:
            # A thread or greenlet may die without any callback, but never without leaving the target.
            target = finished.after(target)
        with self._lock:
            self._busy += 1
        return self._submit(target, args=args, **options)

    def _finished(self) -> None:
        with self._lock:
            self._busy -= 1
            callback, self._callback = self._callback, None
        if callback is not None:
            self._call_soon(callback)


class _Once:
    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._lock = threading.Lock()
        self._done = False

    def after(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            finally:
                with self._lock:
                    first, self._done = not self._done, True
                if first:
                    self._callback()

        return wrapped


def slots_of(controller: Any, call_soon: Callable[[Callable[[], None]], None]) -> Slots:
    """Return the slots of a worker's pool; *call_soon* as in :class:`CountedSlots`."""
    if controller.process_task == getattr(controller, "_process_task_sem", None):
        return SemaphoreSlots(controller)
    return CountedSlots(controller, call_soon)
