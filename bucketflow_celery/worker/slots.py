"""
Free pool slots: how many there are, and a callback for the next one.

A slot is taken by each job that was given to the pool and has not ended. A prefork pool keeps its jobs, so they are
counted there (:class:`ProcessSlots`). Any other pool does not, so they are counted here (:class:`CountedSlots`).
:func:`slots_of` chooses between the two.

Celery's own semaphore counts something else: billiard releases it once more for each child process that it replaces.
And a child that has yet to start can take no job: a task that was admitted for it would start late, in a burst.
"""

from __future__ import annotations

# ruff: noqa: SLF001 - billiard shows its jobs and children nowhere else
import logging
import threading
from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["CountedSlots", "ProcessSlots", "Slots", "slots_of"]

logger = logging.getLogger("bucketflow_celery.worker")

#: Seconds between two checks whether a child process has started.
CHILD_CHECK_INTERVAL = 0.01
#: Seconds until the next check after one that raised.
CHILD_RETRY_INTERVAL = 1.0


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


class _PoolSlots:
    """
    What all pools have in common.

    Celery binds ``pool.apply_async`` into its request classes when the consumer starts. The wrapper around it must be
    in place before that.

    Args:
        controller: Celery's ``WorkController``.
        call: Runs a callback in the worker's event loop, where jobs end.
    """

    def __init__(self, controller: Any, call: Callable[[Callable[[], None]], None]) -> None:
        self._controller = controller
        self._call = call
        self._lock = threading.Lock()
        self._callback: Callable[[], None] | None = None
        self._submit = controller.pool.apply_async
        self._grow: Callable[..., None] | None = None
        controller.pool.apply_async = self._apply_async

    def free(self) -> int:
        """See :class:`Slots`."""
        raise NotImplementedError

    def when_free(self, callback: Callable[[], None]) -> None:
        """See :class:`Slots`."""
        with self._lock:
            self._callback = callback
        self._notify()

    def start(self, request: Any) -> None:
        """See :class:`Slots`."""
        self._controller._process_task(request)

    def forget(self) -> None:
        """See :class:`Slots`."""
        with self._lock:
            self._callback = None
        pool = self._controller.pool
        grow = getattr(pool, "grow", None)
        if grow is not None and grow != self._on_grow:  # a prefork pool has it only once it has started
            self._grow, pool.grow = grow, self._on_grow

    def _apply_async(self, target: Callable[..., Any], args: Any = (), **options: Any) -> Any:
        raise NotImplementedError

    def _on_grow(self, *args: Any) -> None:
        if self._grow is not None:
            self._grow(*args)
        self._notify()

    def _notify(self) -> None:
        if self._callback is None or self.free() <= 0:
            return
        with self._lock:
            callback, self._callback = self._callback, None
        if callback is not None:
            self._call(callback)


class ProcessSlots(_PoolSlots):
    """
    The slots of a prefork pool.

    Args:
        controller: Celery's ``WorkController``.
        call: See :class:`_PoolSlots`.
        call_after: Runs a callback in the event loop, after a number of seconds.
    """

    def __init__(
        self,
        controller: Any,
        call: Callable[[Callable[[], None]], None],
        call_after: Callable[[float, Callable[[], None]], Any],
    ) -> None:
        super().__init__(controller, call)
        self._call_after = call_after
        self._awaits_child = False

    def free(self) -> int:
        """See :class:`Slots`."""
        pool = self._controller.pool._pool
        return _children(pool) - len(pool._cache)

    def forget(self) -> None:
        """See :class:`Slots`."""
        super().forget()
        self._awaits_child = False

    def _notify(self) -> None:
        super()._notify()
        pool = self._controller.pool._pool
        if self._callback is not None and not self._awaits_child and len(pool._cache) < pool._processes:
            self._awaits_child = True
            self._call_after(CHILD_CHECK_INTERVAL, self._check_children)

    def _check_children(self) -> None:
        # Celery looks after a child once, as soon as its pipe is closed. If the child is not quite dead by then, Celery
        # replaces it up to five seconds later, and a job that was written to its pipe waits that long.
        try:
            self._controller.pool.maintain_pool()
        except Exception:  # no process can be forked; the pool's own timer tries again
            logger.exception("pool cannot replace a child process")
            self._call_after(CHILD_RETRY_INTERVAL, self._check_children)
            return
        self._awaits_child = False
        self._notify()

    def _apply_async(self, target: Callable[..., Any], args: Any = (), **options: Any) -> Any:
        # The target runs in another process. billiard forgets the job before it calls one of these.
        for name in ("callback", "error_callback"):
            options[name] = self._notifying(options[name])
        return self._submit(target, args=args, **options)

    def _notifying(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> None:
            try:
                self._notify()  # first, so that the child has its next task while this one is acknowledged
            finally:
                callback(*args, **kwargs)

        return wrapped


class CountedSlots(_PoolSlots):
    """The slots of any other pool."""

    def __init__(self, controller: Any, call: Callable[[Callable[[], None]], None]) -> None:
        super().__init__(controller, call)
        self._busy = 0

    def free(self) -> int:
        """See :class:`Slots`."""
        return int(self._controller.pool.num_processes) - self._busy

    def _apply_async(self, target: Callable[..., Any], args: Any = (), **options: Any) -> Any:
        # A thread or greenlet may end without calling a callback. It never ends without leaving the target.
        with self._lock:
            self._busy += 1

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            try:
                return target(*args, **kwargs)
            finally:
                with self._lock:
                    self._busy -= 1
                self._notify()

        return self._submit(wrapped, args=args, **options)


def slots_of(
    controller: Any,
    call_soon: Callable[[Callable[[], None]], None],
    call_after: Callable[[float, Callable[[], None]], Any],
) -> Slots:
    """
    Return the slots of a worker's pool.

    Args:
        controller: Celery's ``WorkController``.
        call_soon: Runs a callback in the worker's event loop. Any thread may call it.
        call_after: Runs a callback there after a number of seconds.
    """
    if not controller.pool.uses_semaphore:
        return CountedSlots(controller, call_soon)
    # Under an event loop, the jobs of a prefork pool end in that loop.
    return ProcessSlots(controller, _call_now if controller.use_eventloop else call_soon, call_after)


def _children(pool: Any) -> int:
    """Return the number of child processes of billiard's *pool* that can take a job, or have one."""
    started = getattr(pool, "_all_inqueues", None)
    if started is None:  # without an event loop, the pool does not know
        return int(pool._processes)
    return int(min(pool._processes, len(started) - _retire_ending(pool, started)))


def _retire_ending(pool: Any, started: set[int]) -> int:
    """Let no job go to the children that have run all their tasks and have yet to end; return how many there are."""
    most, ending = pool._maxtasksperchild, 0
    for child in list(pool._pool) if most else ():
        counter = pool._on_ready_counters.get(child.pid)
        if counter is not None and counter.value >= most and child.inqW_fd in started:
            # Else Celery may write a job to its pipe, where it waits until the child has ended and another one started.
            pool._busy_workers.add(child.inqW_fd)
            ending += 1
    return ending


def _call_now(callback: Callable[[], None]) -> None:
    callback()
