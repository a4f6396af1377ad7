"""What time it is, and how to wait for it to pass: the only two things a bucket asks of the world."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from bucketflow.limit import SECOND

__all__ = ["SYSTEM_CLOCK", "Clock", "SystemClock", "fast_reader"]


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
        return round(time.monotonic() * SECOND)

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
            with suppress(RuntimeError):  # its loop was closed over it
                waiting.cancel()


SYSTEM_CLOCK = SystemClock()


def fast_reader(clock: Clock) -> tuple[Callable[[], float], float]:
    """
    Return a function and a number whose product, rounded, is ``clock.now()``.

    For those who cannot afford two calls of Python to learn the time.
    """
    return (time.monotonic, float(SECOND)) if type(clock) is SystemClock else (clock.now, 1.0)
