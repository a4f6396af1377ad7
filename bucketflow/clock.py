"""What time it is, and how to wait for it to pass: the only two things a bucket asks of the world."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Protocol

__all__ = ["SYSTEM_CLOCK", "Clock", "SystemClock"]


class Clock(Protocol):
    """Time as the buckets see it. ``bucketflow.testing.FakeClock`` is another one."""

    def now(self) -> int:
        """Return µs since some fixed instant. May stand still, should not run backwards."""

    def sleep(self, seconds: float, wake: threading.Event) -> None:
        """Block this thread until *seconds* have passed or *wake* is set, whichever comes first."""

    async def sleep_async(self, seconds: float, wake: asyncio.Event) -> None:
        """Suspend this coroutine until *seconds* have passed or *wake* is set, whichever comes first."""


class SystemClock:
    """The machine's monotonic clock: setting the wall clock neither grants nor costs tokens."""

    def now(self) -> int:
        """See :class:`Clock`."""
        return time.monotonic_ns() // 1000

    def sleep(self, seconds: float, wake: threading.Event) -> None:
        """See :class:`Clock`."""
        # A thread cannot wait longer than TIMEOUT_MAX at once; whoever waits that long is asked to come again.
        wake.wait(min(seconds, threading.TIMEOUT_MAX))

    async def sleep_async(self, seconds: float, wake: asyncio.Event) -> None:
        """See :class:`Clock`."""
        # Not wait_for: before Python 3.12 it swallows a cancellation that comes together with the wake-up.
        waiting = asyncio.ensure_future(wake.wait())
        try:
            await asyncio.wait((waiting,), timeout=seconds)
        finally:
            waiting.cancel()


SYSTEM_CLOCK = SystemClock()
