"""Clocks: the interface through which buckets read the time and sleep, and the system clock."""

from __future__ import annotations

import asyncio
import importlib.util
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FunctionType
from typing import Literal, Protocol, cast

from bucketflow.limit import SECOND

__all__ = ["SYSTEM_CLOCK", "Clock", "SystemClock", "fast_reader", "monotonic"]


def _original_monotonic() -> Callable[[], float]:
    """
    Return ``time.monotonic`` from a fresh copy of its module.

    freezegun replaces the function in every module that has it, until the end of a test. A bucket that took the
    replacement would compare times of two clocks afterwards, and wait for decades.
    """
    spec = importlib.util.find_spec("time")
    if spec is None or spec.loader is None:
        return time.monotonic
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return cast("Callable[[], float]", module.monotonic)


#: ``time.monotonic``, also while a test has replaced it.
monotonic = _original_monotonic()


class Clock(Protocol):
    """Interface of a clock. :class:`SystemClock` and ``bucketflow.testing.FakeClock`` implement it."""

    def now(self) -> int:
        """Return the µs since a fixed instant. The value may stand still and should not decrease."""

    def sleep(self, seconds: float, wake: threading.Event) -> None:
        """Block this thread until *seconds* have passed or *wake* is set, whichever comes first."""

    async def sleep_async(self, seconds: float, wake: asyncio.Event) -> None:
        """Suspend this coroutine until *seconds* have passed or *wake* is set, whichever comes first."""


class SystemClock:
    """
    The machine's monotonic clock, so that setting the wall clock neither grants nor costs tokens.

    It goes on while freezegun or time-machine stop the time of a test.
    """

    def now(self) -> int:
        """See :class:`Clock`."""
        return round(monotonic() * SECOND)

    def sleep(self, seconds: float, wake: threading.Event) -> None:
        """See :class:`Clock`."""
        # A thread cannot wait longer than TIMEOUT_MAX in one call. Callers check the time and sleep again.
        wake.wait(min(seconds, threading.TIMEOUT_MAX))

    async def sleep_async(self, seconds: float, wake: asyncio.Event) -> None:
        """See :class:`Clock`."""
        # Not wait_for: before Python 3.12 it swallows a cancellation that arrives together with the wake-up.
        waiting = asyncio.ensure_future(wake.wait())
        try:
            if isinstance(time.monotonic, FunctionType):  # replaced, so the clock of the event loop may stand still
                await _wait_for_thread(waiting, seconds)
            else:
                await asyncio.wait((waiting,), timeout=seconds)
        finally:
            with suppress(RuntimeError):  # the loop was closed meanwhile
                waiting.cancel()


async def _wait_for_thread(waiting: asyncio.Task[Literal[True]], seconds: float) -> None:
    """Wait until *waiting* is done, or cancel it after *seconds*, which a thread measures."""
    cancel = waiting.get_loop().call_soon_threadsafe
    timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), cancel, (waiting.cancel,))
    timer.daemon = True
    timer.start()
    try:
        await asyncio.wait((waiting,))
    finally:
        timer.cancel()


SYSTEM_CLOCK = SystemClock()


def fast_reader(clock: Clock) -> tuple[Callable[[], float], float]:
    """
    Return a function and a factor: the function's result times the factor, rounded, is ``clock.now()``.

    For hot paths: reading the system clock this way is one call of a C function instead of two Python calls.
    """
    return (monotonic, float(SECOND)) if type(clock) is SystemClock else (clock.now, 1.0)
