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
from bucketflow.fork import forget_after_fork
from bucketflow.limit import SECOND
from bucketflow.validation import check_number

if TYPE_CHECKING:
    from bucketflow.clock import Clock

__all__ = ["AsyncTurnstile", "ThreadTurnstile"]

#: What is known while the head waits for its very first answer.
_UNKNOWN = Decision(allowed=False, retry_after=0.0, binding=None, tokens=())


class _ThreadPlace:
    """The place of a thread in the line."""

    __slots__ = ("event",)

    def __init__(self) -> None:
        self.event = threading.Event()

    def is_left(self) -> bool:
        """Return whether nobody stands here any more."""
        return False

    def wake(self) -> None:
        """Wake whoever stands here."""
        self.event.set()


class _AsyncPlace:
    """The place of a coroutine in the line, which may run in another thread's loop than the one that wakes it."""

    __slots__ = ("event", "loop")

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.loop = asyncio.get_running_loop()

    def is_left(self) -> bool:
        """See :class:`_ThreadPlace`."""
        return self.loop.is_closed()  # over its head

    def wake(self) -> None:
        """See :class:`_ThreadPlace`."""
        with suppress(RuntimeError):  # closed since we looked: the next who looks passes it over
            self.loop.call_soon_threadsafe(self.event.set)


_Place = TypeVar("_Place", _ThreadPlace, _AsyncPlace)


class _Turnstile(Generic[_Place]):
    """
    The line itself, and what both kinds of waiting share. Every method here is short and never sleeps.

    Attributes:
        line: Who waits. While :meth:`is_busy`, a caller who does not wait must be refused: it would overtake.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.after_fork()
        forget_after_fork(self)

    def after_fork(self) -> None:
        """Begin anew: those who wait are the parent's threads."""
        self._lock = threading.Lock()
        self.line: OrderedDict[_Place, None] = OrderedDict()
        self._last: Decision = _UNKNOWN
        self._asks_again = 0

    def is_busy(self) -> bool:
        """Return whether somebody waits; whoever left without a word does not count."""
        if not self.line:
            return False
        with self._lock:
            return self._head() is not None

    def refusal(self) -> Decision:
        """
        Return the answer to a caller who may not overtake.

        It repeats what the head was told. ``retry_after`` is the time until the head asks again: nobody behind it is
        served sooner. It is 0, and ``tokens`` is empty, while the head still waits for its first answer.
        """
        with self._lock:
            return replace(self._last, retry_after=max(0, self._asks_again - self._clock.now()) / SECOND)

    def nudge(self) -> None:
        """Let the head ask at once: tokens came back sooner than it was told."""
        with self._lock:
            self._wake_head()

    def _head(self) -> _Place | None:
        while self.line:
            head = next(iter(self.line))
            if not head.is_left():
                return head
            del self.line[head]
            self._last, self._asks_again = _UNKNOWN, 0
        return None

    def _wake_head(self) -> None:
        head = self._head()
        if head is not None:
            head.wake()

    def _leave(self, place: _Place) -> None:
        with self._lock:
            if place in self.line:
                was_head = place is next(iter(self.line))
                del self.line[place]
                if was_head:
                    self._last, self._asks_again = _UNKNOWN, 0
                    self._wake_head()

    def _enter(self, place: _Place) -> None:
        with self._lock:
            self.line[place] = None

    def _is_head(self, place: _Place) -> bool:
        with self._lock:
            return place is self._head()

    def _deadline(self, timeout: float | None) -> int | None:
        if timeout is None:
            return None
        return self._clock.now() + round(check_number("timeout", timeout, "seconds, 0 or more, or None") * SECOND)

    def _too_late(self, deadline: int | None) -> bool:
        """Return whether *deadline* has come, or comes before the head asks again."""
        return deadline is not None and (deadline <= self._clock.now() or deadline < self._asks_again)

    def _left(self, deadline: int) -> float:
        return (deadline - self._clock.now()) / SECOND

    def _heed(self, decision: Decision, deadline: int | None) -> bool:
        """Note what the head was told. Return whether to wait and ask again."""
        asks_again = self._clock.now() + round(decision.retry_after * SECOND)
        if decision.allowed or (deadline is not None and asks_again > deadline):
            return False
        with self._lock:
            self._last, self._asks_again = decision, asks_again
        return True


class ThreadTurnstile(_Turnstile[_ThreadPlace]):
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
        place = _ThreadPlace()
        try:
            self._enter(place)
            while not self._is_head(place):
                if self._too_late(deadline):
                    return self.refusal()
                self._await_turn(place, deadline)
            while True:
                place.event.clear()  # before asking: a nudge that comes during the question must not be lost
                decision = ask()
                if not self._heed(decision, deadline):
                    return decision
                self._clock.sleep(decision.retry_after, place.event)
        finally:
            self._leave(place)

    def _await_turn(self, place: _ThreadPlace, deadline: int | None) -> None:
        if deadline is None:
            place.event.wait()
        else:
            self._clock.sleep(self._left(deadline), place.event)


class AsyncTurnstile(_Turnstile[_AsyncPlace]):
    """
    A line of coroutines, in one event loop or in several threads' loops at once.

    Args:
        clock: What the waiting is measured and slept with.
    """

    async def wait(self, ask: Callable[[], Awaitable[Decision]], timeout: float | None = None) -> Decision:
        """
        Join the line, and ask when it is one's turn until granted or out of time.

        Whoever is cancelled, or whose *ask* raises, leaves the line too, and the next moves up. Parameters, result
        and errors are those of :meth:`ThreadTurnstile.wait`; *ask* is awaited.
        """
        deadline = self._deadline(timeout)
        place = _AsyncPlace()
        try:
            self._enter(place)
            while not self._is_head(place):
                if self._too_late(deadline):
                    return self.refusal()
                await self._await_turn(place, deadline)
            while True:
                place.event.clear()
                decision = await ask()
                if not self._heed(decision, deadline):
                    return decision
                await self._clock.sleep_async(decision.retry_after, place.event)
        finally:
            self._leave(place)

    async def _await_turn(self, place: _AsyncPlace, deadline: int | None) -> None:
        if deadline is None:
            await place.event.wait()
        else:
            await self._clock.sleep_async(self._left(deadline), place.event)
