"""
FIFO queue of waiting callers for remote buckets, whose next grant time is unknown locally.

Only the head polls. After a refusal it sleeps for ``retry_after``, outside every lock, and polls again. All others
sleep until they are the head. So a queue of a thousand costs as many calls as a queue of one. A caller that leaves,
granted or not, wakes the next.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Generic, TypeVar

from bucketflow.algorithm.gcra import Decision
from bucketflow.fork import reset_after_fork
from bucketflow.limit import SECOND
from bucketflow.validation import check_number

if TYPE_CHECKING:
    from bucketflow.clock import Clock

__all__ = ["AsyncPollingQueue", "ThreadPollingQueue"]

#: The refusal until the head has received its first reply.
_UNKNOWN = Decision(allowed=False, retry_after=0.0, binding=None, tokens=())


class _ThreadWaiter:
    """A waiting thread."""

    __slots__ = ("event",)

    def __init__(self) -> None:
        self.event = threading.Event()

    def is_abandoned(self) -> bool:
        """Return whether the waiter can no longer run, so that it will not leave the queue by itself."""
        return False

    def wake(self) -> None:
        """Wake the waiter."""
        self.event.set()


class _AsyncWaiter:
    """A waiting coroutine. The thread that wakes it may run another event loop."""

    __slots__ = ("event", "loop")

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.loop = asyncio.get_running_loop()

    def is_abandoned(self) -> bool:
        """See :class:`_ThreadWaiter`; true if the loop was closed while the coroutine waited."""
        return self.loop.is_closed()

    def wake(self) -> None:
        """See :class:`_ThreadWaiter`."""
        with suppress(RuntimeError):  # closed just now: the next call that reads the head removes this waiter
            self.loop.call_soon_threadsafe(self.event.set)


_WaiterT = TypeVar("_WaiterT", _ThreadWaiter, _AsyncWaiter)


class _PollingQueue(Generic[_WaiterT]):
    """
    The queue without the waiting itself. Its methods are short and never sleep.

    Attributes:
        waiters: In order of arrival. It may contain abandoned ones, see :meth:`has_waiters`.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.after_fork()
        reset_after_fork(self)

    def after_fork(self) -> None:
        """Drop all waiters: in a forked child their threads do not exist."""
        self._lock = threading.Lock()
        self.waiters: OrderedDict[_WaiterT, None] = OrderedDict()
        self._last_refusal: Decision = _UNKNOWN
        self._next_poll_at = 0

    def has_waiters(self) -> bool:
        """Return whether a caller waits; then one that does not wait must be refused, because it would overtake."""
        if not self.waiters:
            return False
        with self._lock:
            return self._head() is not None

    def current_refusal(self) -> Decision:
        """
        Return the refusal for a caller that must not overtake.

        It repeats the head's last refusal. ``retry_after`` is the time until the head polls again, before which no
        waiter behind it is granted. Until the head has received its first reply, ``retry_after`` is 0 and ``tokens``
        is empty.
        """
        with self._lock:
            return replace(self._last_refusal, retry_after=max(0, self._next_poll_at - self._clock.now()) / SECOND)

    def wake_head(self) -> None:
        """Let the head poll at once, because tokens have been returned."""
        with self._lock:
            self._wake_head()

    def _head(self) -> _WaiterT | None:
        while self.waiters:
            head = next(iter(self.waiters))
            if not head.is_abandoned():
                return head
            del self.waiters[head]
            self._last_refusal, self._next_poll_at = _UNKNOWN, 0
        return None

    def _wake_head(self) -> None:
        head = self._head()
        if head is not None:
            head.wake()

    def _leave(self, waiter: _WaiterT) -> None:
        with self._lock:
            if waiter in self.waiters:
                was_head = waiter is next(iter(self.waiters))
                del self.waiters[waiter]
                if was_head:
                    self._last_refusal, self._next_poll_at = _UNKNOWN, 0
                    self._wake_head()

    def _join(self, waiter: _WaiterT) -> None:
        with self._lock:
            self.waiters[waiter] = None

    def _is_head(self, waiter: _WaiterT) -> bool:
        with self._lock:
            return waiter is self._head()

    def _deadline(self, timeout: float | None) -> int | None:
        if timeout is None:
            return None
        return self._clock.now() + round(check_number("timeout", timeout, "seconds, 0 or more, or None") * SECOND)

    def _cannot_meet(self, deadline: int | None) -> bool:
        """Return whether *deadline* has passed, or will pass before the head polls again."""
        return deadline is not None and (deadline <= self._clock.now() or deadline < self._next_poll_at)

    def _seconds_until(self, deadline: int) -> float:
        return (deadline - self._clock.now()) / SECOND

    def _record_reply(self, decision: Decision, deadline: int | None) -> bool:
        """Store the head's *decision* if it is a refusal; return whether to wait and poll again."""
        next_poll_at = self._clock.now() + round(decision.retry_after * SECOND)
        if decision.allowed or (deadline is not None and next_poll_at > deadline):
            return False
        with self._lock:
            self._last_refusal, self._next_poll_at = decision, next_poll_at
        return True


class ThreadPollingQueue(_PollingQueue[_ThreadWaiter]):
    """
    A queue of threads.

    Args:
        clock: Measures and sleeps the waiting time.
    """

    def wait(self, poll: Callable[[], Decision], timeout: float | None = None) -> Decision:
        """
        Join the queue and, as its head, call *poll* until it grants or *timeout* is over.

        The caller also leaves the queue if it is interrupted or *poll* raises; then the next waiter is the head.

        Args:
            poll: Takes the tokens or returns a refusal. Only the head calls it: never under a lock, never from two
                threads at once. Each grant is the result of a separate call.
            timeout: Maximum wait in seconds; ``None``: unlimited. A refusal whose ``retry_after`` exceeds the time
                left ends the wait at once, because no waiter could be granted sooner. With 0, *poll* is called at
                most once.

        Returns:
            The grant, or the last refusal. A caller that never became the head gets :meth:`current_refusal`.

        Raises:
            ConfigError: *timeout* is not a number of 0 or more.
        """
        deadline = self._deadline(timeout)
        waiter = _ThreadWaiter()
        try:
            self._join(waiter)
            while not self._is_head(waiter):
                if self._cannot_meet(deadline):
                    return self.current_refusal()
                self._sleep_behind_head(waiter, deadline)
            while True:
                waiter.event.clear()  # before the poll: a wake-up that arrives during it must not be lost
                decision = poll()
                if not self._record_reply(decision, deadline):
                    return decision
                self._clock.sleep(decision.retry_after, waiter.event)
        finally:
            self._leave(waiter)

    def _sleep_behind_head(self, waiter: _ThreadWaiter, deadline: int | None) -> None:
        if deadline is None:
            waiter.event.wait()
        else:
            self._clock.sleep(self._seconds_until(deadline), waiter.event)


class AsyncPollingQueue(_PollingQueue[_AsyncWaiter]):
    """
    A queue of coroutines, in one event loop or in the loops of several threads.

    Args:
        clock: Measures and sleeps the waiting time.
    """

    async def wait(self, poll: Callable[[], Awaitable[Decision]], timeout: float | None = None) -> Decision:
        """
        Join the queue and, as its head, await *poll* until it grants or *timeout* is over.

        The caller also leaves the queue if it is cancelled or *poll* raises; then the next waiter is the head.
        Parameters, result and errors are those of :meth:`ThreadPollingQueue.wait`.
        """
        deadline = self._deadline(timeout)
        waiter = _AsyncWaiter()
        try:
            self._join(waiter)
            while not self._is_head(waiter):
                if self._cannot_meet(deadline):
                    return self.current_refusal()
                await self._sleep_behind_head(waiter, deadline)
            while True:
                waiter.event.clear()
                decision = await poll()
                if not self._record_reply(decision, deadline):
                    return decision
                await self._clock.sleep_async(decision.retry_after, waiter.event)
        finally:
            self._leave(waiter)

    async def _sleep_behind_head(self, waiter: _AsyncWaiter, deadline: int | None) -> None:
        if deadline is None:
            await waiter.event.wait()
        else:
            await self._clock.sleep_async(self._seconds_until(deadline), waiter.event)
