"""The wait of a coroutine for the tokens of an in-process bucket."""

from __future__ import annotations

import asyncio
import functools

from bucketflow.algorithm.wait_queue import Waiter
from bucketflow.local.base import Bucket

__all__ = ["AsyncWaiting"]


class AsyncWaiting(Bucket):
    """A bucket for which coroutines wait, in one event loop or in the event loops of several threads."""

    async def _wait_async(self, cost: float, timeout: float | None) -> bool:
        """
        Suspend this coroutine until *cost* tokens are taken, or until *timeout*.

        Args:
            cost: Tokens, >= 0.
            timeout: Seconds; ``None``: no limit.

        Returns:
            Whether the tokens were taken.
        """
        wake = asyncio.Event()
        waiter = Waiter(cost, functools.partial(_wake_from_any_thread, asyncio.get_running_loop(), wake))
        try:
            deadline = self._join(waiter, timeout)
            while (left := self._time_left(waiter, deadline)) is not None:
                await self._clock.sleep_async(left, wake)
                wake.clear()
        except BaseException:  # also CancelledError, and GeneratorExit of a task that is never finished
            self._cancel(waiter)
            raise
        if not waiter.granted:
            self._cancel(waiter)
        return waiter.granted


def _wake_from_any_thread(loop: asyncio.AbstractEventLoop, wake: asyncio.Event) -> None:
    # A loop that was closed over its tasks cannot be woken. Their waiters stay in the queue until they are granted.
    if not loop.is_closed():
        loop.call_soon_threadsafe(wake.set)
