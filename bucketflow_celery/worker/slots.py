"""
Free pool slots: how many there are, and a callback for the next one.

Celery counts the slots of a prefork pool with a semaphore (:class:`SemaphoreSlots`). Every other pool queues all tasks
it is given, so its slots are counted here (:class:`CountedSlots`). :func:`slots_of` chooses between the two.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

from celery.worker import state

__all__ = ["CountedSlots", "SemaphoreSlots", "Slots", "slots_of"]


class Slots(Protocol):
    """The slots of a worker's pool."""

    def free(self) -> int:
        """Return the number of free slots."""

    def when_free(self, callback: Callable[[], None]) -> None:
        """Call *callback* once, when a slot is free. Repeated calls before that count as one."""

    def start(self, request: Any) -> None:
        """Run *request* in a slot."""

    def forget(self) -> None:
        """Drop the pending callback, which belongs to a connection that was lost."""


class SemaphoreSlots:
    """
    The slots of a prefork pool under the event loop.

    Celery itself counts them with a semaphore, which it acquires before it starts a task.

    Args:
        controller: Celery's ``WorkController``.
    """

    def __init__(self, controller: Any) -> None:
        self._controller = controller
        self._is_acquiring = False

    def free(self) -> int:
        """See :class:`Slots`."""
        return int(self._controller.semaphore.value)

    def when_free(self, callback: Callable[[], None]) -> None:
        """See :class:`Slots`."""
        if self._is_acquiring:
            return

        def on_acquired() -> None:
            self._is_acquiring = False
            self._controller.semaphore.release()
            callback()

        self._is_acquiring = True
        self._controller.semaphore.acquire(on_acquired)

    def start(self, request: Any) -> None:
        """See :class:`Slots`."""
        self._controller.semaphore.acquire(self._controller._process_task, request)  # noqa: SLF001

    def forget(self) -> None:
        """
        Drop the pending callback, and acquire the semaphore again for each running task. See :class:`Slots`.

        When Celery loses its connection it clears the semaphore, although tasks that have started keep their slots.
        """
        self._is_acquiring = False
        for _ in state.active_requests:
            self._controller.semaphore.acquire(lambda: None)


class CountedSlots:
    """
    The slots of any other pool, counted by a wrapper around ``pool.apply_async``.

    Celery binds ``pool.apply_async`` into its request classes when the consumer starts. The wrapper must be in place
    before that.

    Args:
        controller: Celery's ``WorkController``.
        call_soon: Runs a callback in the worker's event loop. It is called from the pool's threads.
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
        finished = _CallOnce(self._on_finished)
        if self._controller.pool.uses_semaphore:
            # The target runs in another process, where a wrapper could not count. Only the callbacks run in this one.
            options["callback"] = finished.after(options["callback"])
            options["error_callback"] = finished.after(options["error_callback"])
        else:
            # A thread or greenlet may end without calling either callback. It never ends without leaving the target.
            target = finished.after(target)
        with self._lock:
            self._busy += 1
        return self._submit(target, args=args, **options)

    def _on_finished(self) -> None:
        with self._lock:
            self._busy -= 1
            callback, self._callback = self._callback, None
        if callback is not None:
            self._call_soon(callback)


class _CallOnce:
    """Calls *callback* after the first of several functions has returned or raised."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._lock = threading.Lock()
        self._done = False

    def after(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return *function* followed by the callback, unless the callback has been called already."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            finally:
                with self._lock:
                    is_first, self._done = not self._done, True
                if is_first:
                    self._callback()

        return wrapped


def slots_of(controller: Any, call_soon: Callable[[Callable[[], None]], None]) -> Slots:
    """
    Return the slots of a worker's pool.

    Args:
        controller: Celery's ``WorkController``.
        call_soon: See :class:`CountedSlots`.
    """
    if controller.process_task == getattr(controller, "_process_task_sem", None):
        return SemaphoreSlots(controller)
    return CountedSlots(controller, call_soon)
