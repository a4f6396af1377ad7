"""A clock that moves when it is told to: tests of anything built on bucketflow need no sleep."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

from bucketflow.algorithm.window import worst_window
from bucketflow.limit import SECOND, Limit
from bucketflow.validation import check_number

__all__ = ["FakeClock", "worst_excess"]


class FakeClock:
    """
    Time under a test's control.

    By default the clock jumps to the earliest instant that anybody sleeps for: ``consume(block=True)`` returns at
    once and :meth:`now` shows how long it would have taken, also when many coroutines wait side by side. With
    ``jump=False`` sleepers wait, in real threads or tasks, until :meth:`advance` reaches them.

    Args:
        start: Seconds at which the clock starts.
        jump: Whether sleepers move the clock by themselves.

    Raises:
        ConfigError: *start* is no number of 0 or more.
    """

    def __init__(self, start: float = 0.0, *, jump: bool = True) -> None:
        self._now = round(check_number("start", start, "seconds, 0 or more") * SECOND)
        self._jump = jump
        self._changed = threading.Condition()
        self._deadlines: list[int] = []

    def now(self) -> int:
        """Return µs since the clock's zero."""
        return self._now

    @property
    def sleeping(self) -> tuple[float, ...]:
        """The instants, in seconds and sorted, until which threads and coroutines sleep now."""
        with self._changed:
            return tuple(sorted(deadline / SECOND for deadline in self._deadlines if deadline > self._now))

    def advance(self, seconds: float) -> None:
        """Move on by *seconds*; a negative number steps back, as a badly set clock does."""
        with self._changed:
            self._now += round(seconds * SECOND)
            self._changed.notify_all()

    def sleep(self, seconds: float, wake: threading.Event) -> None:
        """See :class:`bucketflow.clock.Clock`."""
        deadline = self._lie_down(seconds)
        try:
            while not wake.is_set() and not self._reached(deadline):
                with self._changed:
                    self._changed.wait(0.001)  # not for ever: whoever sets wake knows nothing of this condition
        finally:
            self._get_up(deadline)

    async def sleep_async(self, seconds: float, wake: asyncio.Event) -> None:
        """See :class:`bucketflow.clock.Clock`."""
        deadline = self._lie_down(seconds)
        try:
            await asyncio.sleep(0)  # whoever is about to sleep for less time comes first
            while not wake.is_set() and not self._reached(deadline):  # noqa: ASYNC110 - advance() may be another thread's
                await asyncio.sleep(0 if self._jump else 0.001)
        finally:
            self._get_up(deadline)

    def _lie_down(self, seconds: float) -> int:
        with self._changed:
            deadline = self._now + round(min(seconds, threading.TIMEOUT_MAX) * SECOND)
            self._deadlines.append(deadline)
        return deadline

    def _get_up(self, deadline: int) -> None:
        with self._changed:
            self._deadlines.remove(deadline)
            self._changed.notify_all()

    def _reached(self, deadline: int) -> bool:
        with self._changed:
            if self._jump and deadline == min(self._deadlines):
                self._now = max(self._now, deadline)
            return self._now >= deadline


def worst_excess(starts: Sequence[tuple[float, float]], limit: Limit) -> float:
    """
    Return by how many tokens the worst of all windows exceeds *limit*; not above 0 if none does.

    A window from one start to another, both included, may cost ``capacity + fill_rate × its length``.

    Args:
        starts: Time in seconds and cost in tokens of each start, in the order of time.
        limit: What was allowed.
    """
    worst = worst_window(limit, starts)
    return -limit.capacity if worst is None else worst.over
