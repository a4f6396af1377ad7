"""A clock that moves when it is told to: tests of anything built on bucketflow need no sleep."""

from __future__ import annotations

import asyncio
import threading

from bucketflow.limit import SECOND, check_number

__all__ = ["FakeClock"]


class FakeClock:
    """
    Time under a test's control.

    By default whoever sleeps moves the clock: ``consume(block=True)`` returns at once and :meth:`now` shows how long
    it would have taken. With ``jump=False`` sleepers wait, in real threads or tasks, until :meth:`advance` reaches
    them.

    Args:
        start: Seconds at which the clock starts.
        jump: Whether a sleeper moves the clock by itself.
    """

    def __init__(self, start: float = 0.0, *, jump: bool = True) -> None:
        self._now = round(check_number("start", start, "seconds, 0 or more") * SECOND)
        self._jump = jump
        self._changed = threading.Condition()

    def now(self) -> int:
        """Return µs since the clock's zero."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move on by *seconds*; a negative number steps back, as a badly set clock does."""
        with self._changed:
            self._now += round(seconds * SECOND)
            self._changed.notify_all()

    def sleep(self, seconds: float, wake: threading.Event) -> None:
        """See :class:`bucketflow.clock.Clock`."""
        if self._jump:
            self.advance(seconds)
            return
        deadline = self._now + round(seconds * SECOND)
        with self._changed:
            while self._now < deadline and not wake.is_set():
                self._changed.wait(0.001)

    async def sleep_async(self, seconds: float, wake: asyncio.Event) -> None:
        """See :class:`bucketflow.clock.Clock`."""
        if self._jump:
            await asyncio.sleep(0)
            if not wake.is_set():
                self.advance(seconds)
            return
        deadline = self._now + round(seconds * SECOND)
        while self._now < deadline and not wake.is_set():  # noqa: ASYNC110 - advance() may come from another thread
            await asyncio.sleep(0.001)
