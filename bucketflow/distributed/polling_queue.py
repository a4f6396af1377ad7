"""
Waiting in order where nobody can say ahead when a turn comes: in Redis, or where buckets share an ancestor.

Only the head of the line asks. Refused, it sleeps as long as it was told, outside every lock, and asks again; the
others sleep until they are the head. So a line of a thousand costs no more questions than a line of one. Whoever
leaves, granted or not, wakes the next.
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

#: What is known while the head waits for its very first answer.
_UNKNOWN = Decision(allowed=False, retry_after=0.0, binding=None, tokens=())


class _ThreadWaiter:
    """The waiter of a thread in the line."""

    __slots__ = ("event",)

    def __init__(self) -> None:
        self.event = threading.Event()

    def is_abandoned(self) -> bool:
        """Return whether nobody stands here any more."""
        return False

    def wake(self) -> None:
        """Wake whoever stands here."""
        self.event.set()


class _AsyncWaiter:
    """The waiter of a coroutine in the line, which may run in another thread's loop than the one that wakes it."""

    __slots__ = ("event", "loop")

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.loop = asyncio.get_running_loop()

    def is_abandoned(self) -> bool:
        """See :class:`_ThreadWaiter`."""
        return self.loop.is_closed()  # over its head

    def wake(self) -> None:
        """See :class:`_ThreadWaiter`."""
        with suppress(RuntimeError):  # closed since we looked: the next who looks passes it over
            self.loop.call_soon_threadsafe(self.event.set)


_WaiterT = TypeVar("_WaiterT", _ThreadWaiter, _AsyncWaiter)


class _PollingQueue(Generic[_WaiterT]):
    """
    The line itself, and what both kinds of waiting share. Every method here is short and never sleeps.

    Attributes:
        line: Who waits. While :meth:`is_busy`, a caller who does not wait must be refused: it would overtake.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.after_fork()
        reset_after_fork(self)

    def after_fork(self) -> None:
        """Begin anew: those who wait are the parent's threads."""
        self._lock = threading.Lock()
        self.line: OrderedDict[_WaiterT, None] = OrderedDict()
        self._last: Decision = _UNKNOWN
        self._asks_again_at = 0

    def is_busy(self) -> bool:
        """Return whether somebody waits; whoever left without a word does not count."""
        if not self.line:
            return False
        with self._lock:
            return self._head() is not None

    def current_refusal(self) -> Decision:
        """
        Return the answer to a caller who may not overtake.

        It repeats what the head was told. ``retry_after`` is the time until the head asks again: nobody behind it is
        served sooner. It is 0, and ``tokens`` is empty, while the head still waits for its first answer.
        """
        with self._lock:
            return replace(self._last, retry_after=max(0, self._asks_again_at - self._clock.now()) / SECOND)

    def wake_head(self) -> None:
        """Let the head ask at once: tokens came back sooner than it was told."""
        with self._lock:
            self._wake_head()

    def _head(self) -> _WaiterT | None:
        while self.line:
            head = next(iter(self.line))
            if not head.is_abandoned():
                return head
            del self.line[head]
            self._last, self._asks_again_at = _UNKNOWN, 0
        return None

    def _wake_head(self) -> None:
        head = self._head()
        if head is not None:
            head.wake()

    def _leave(self, waiter: _WaiterT) -> None:
        with self._lock:
            if waiter in self.line:
                was_head = waiter is next(iter(self.line))
                del self.line[waiter]
                if was_head:
                    self._last, self._asks_again_at = _UNKNOWN, 0
                    self._wake_head()

    def _enter(self, waiter: _WaiterT) -> None:
        with self._lock:
            self.line[waiter] = None

    def _is_head(self, waiter: _WaiterT) -> bool:
        with self._lock:
            return waiter is self._head()

    def _deadline(self, timeout: float | None) -> int | None:
        if timeout is None:
            return None
        return self._clock.now() + round(check_number("timeout", timeout, "seconds, 0 or more, or None") * SECOND)

    def _too_late(self, deadline: int | None) -> bool:
        """Return whether *deadline* has come, or comes before the head asks again."""
        return deadline is not None and (deadline <= self._clock.now() or deadline < self._asks_again_at)

    def _left(self, deadline: int) -> float:
        return (deadline - self._clock.now()) / SECOND

    def _record_reply(self, decision: Decision, deadline: int | None) -> bool:
        """Note what the head was told. Return whether to wait and ask again."""
        asks_again = self._clock.now() + round(decision.retry_after * SECOND)
        if decision.allowed or (deadline is not None and asks_again > deadline):
            return False
        with self._lock:
            self._last, self._asks_again_at = decision, asks_again
        return True


class ThreadPollingQueue(_PollingQueue[_ThreadWaiter]):
    """
    A line of threads.

    Args:
        clock: What the waiting is measured and slept with.
    """

    def wait(self, ask: Callable[[], Decision], timeout: float | None = None) -> Decision:
        """
        Join the line, and ask when it is one's turn until granted or out of time.

        Whoever is interrupted, or whose *ask* raises, leaves the line too, and the next moves up.

        Args:
            ask: Takes the tokens or says when to come again. Called by the head only, never under a lock, and by no
                two threads at once. To be granted twice it must be called twice: nothing is taken behind its back.
            timeout: Seconds to wait at most; ``None``: for ever. A refusal that reaches beyond it ends the wait at
                once, because nobody could be served sooner. 0 asks at most once.

        Returns:
            The grant, or the last refusal. One who never became the head gets :meth:`refusal`.

        Raises:
            ConfigError: *timeout* is no number of 0 or more.
        """
        deadline = self._deadline(timeout)
        waiter = _ThreadWaiter()
        try:
            self._enter(waiter)
            while not self._is_head(waiter):
                if self._too_late(deadline):
                    return self.current_refusal()
                self._await_turn(waiter, deadline)
            while True:
                waiter.event.clear()  # before asking: a nudge that comes during the question must not be lost
                decision = ask()
                if not self._record_reply(decision, deadline):
                    return decision
                self._clock.sleep(decision.retry_after, waiter.event)
        finally:
            self._leave(waiter)

    def _await_turn(self, waiter: _ThreadWaiter, deadline: int | None) -> None:
        if deadline is None:
            waiter.event.wait()
        else:
            self._clock.sleep(self._left(deadline), waiter.event)


class AsyncPollingQueue(_PollingQueue[_AsyncWaiter]):
    """
    A line of coroutines, in one event loop or in several threads' loops at once.

    Args:
        clock: What the waiting is measured and slept with.
    """

    async def wait(self, ask: Callable[[], Awaitable[Decision]], timeout: float | None = None) -> Decision:
        """
        Join the line, and ask when it is one's turn until granted or out of time.

        Whoever is cancelled, or whose *ask* raises, leaves the line too, and the next moves up. Parameters, result
        and errors are those of :meth:`ThreadPollingQueue.wait`; *ask* is awaited.
        """
        deadline = self._deadline(timeout)
        waiter = _AsyncWaiter()
        try:
            self._enter(waiter)
            while not self._is_head(waiter):
                if self._too_late(deadline):
                    return self.current_refusal()
                await self._await_turn(waiter, deadline)
            while True:
                waiter.event.clear()
                decision = await ask()
                if not self._record_reply(decision, deadline):
                    return decision
                await self._clock.sleep_async(decision.retry_after, waiter.event)
        finally:
            self._leave(waiter)

    async def _await_turn(self, waiter: _AsyncWaiter, deadline: int | None) -> None:
        if deadline is None:
            await waiter.event.wait()
        else:
            await self._clock.sleep_async(self._left(deadline), waiter.event)
