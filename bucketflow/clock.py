"""Clocks: the interface through which buckets read the time and sleep, and the system clock."""

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
    """Interface of a clock. :class:`SystemClock` and ``bucketflow.testing.FakeClock`` implement it."""

    def now(self) -> int:
        """Return the µs since a fixed instant. The value may stand still and should not decrease."""

    def sleep(self, seconds: float, wake: threading.Event) -> None:
        """Block this thread until *seconds* have passed or *wake* is set, whichever comes first."""

    async def sleep_async(self, seconds: float, wake: asyncio.Event) -> None:
        """Suspend this coroutine until *seconds* have passed or *wake* is set, whichever comes first."""


class SystemClock:
    """The machine's monotonic clock, so that setting the wall clock neither grants nor costs tokens."""

    def now(self) -> int:
        """See :class:`Clock`."""
        return round(time.monotonic() * SECOND)

    def sleep(self, seconds: float, wake: threading.Event) -> None:
        """See :class:`Clock`."""
        # A thread cannot wait longer than TIMEOUT_MAX in one call. Callers check the time and sleep again.
        wake.wait(min(seconds, threading.TIMEOUT_MAX))

    async def sleep_async(self, seconds: float, wake: asyncio.Event) -> None:
        """See :class:`Clock`."""
        # Not wait_for: before Python 3.12 it swallows a cancellation that arrives together with the wake-up.
        waiting = asyncio.ensure_future(wake.wait())
        try:
            await asyncio.wait((waiting,), timeout=seconds)
        finally:
            with suppress(RuntimeError):  # the loop was closed meanwhile
                waiting.cancel()


SYSTEM_CLOCK = SystemClock()


def fast_reader(clock: Clock) -> tuple[Callable[[], float], float]:
    """
    Return a function and a factor: the function's result times the factor, rounded, is ``clock.now()``.

    For hot paths: reading the system clock this way is one call of a C function instead of two Python calls.
    """
    return (time.monotonic, float(SECOND)) if type(clock) is SystemClock else (clock.now, 1.0)
