"""Test support: a fake clock, Redis buckets without Redis, and a check of recorded starts against a limit."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Sequence

from bucketflow.algorithm.window import worst_window
from bucketflow.clock import SYSTEM_CLOCK
from bucketflow.fork import reset_after_fork
from bucketflow.limit import SECOND, Limit
from bucketflow.memory_redis import MemoryRedis
from bucketflow.process_bound import ProcessBound
from bucketflow.validation import check_number

__all__ = ["FakeClock", "MemoryRedis", "worst_excess"]


class FakeClock(ProcessBound):
    """
    A clock that a test controls.

    By default the clock jumps to the earliest deadline of all sleepers. ``consume(block=True)`` then returns at once,
    and :meth:`now` shows how long it would have waited, also when many coroutines wait concurrently. With
    ``jump=False`` sleepers wait, in real threads or tasks, until :meth:`advance` reaches their deadlines.

    Args:
        start: Seconds at which the clock starts, >= 0.
        jump: Whether sleepers move the clock.

    Raises:
        ConfigError: *start* is not a number of 0 or more.
    """

    _instead = "create one in each process"

    def __init__(self, start: float = 0.0, *, jump: bool = True) -> None:
        self._now = round(check_number("start", start, "seconds, 0 or more") * SECOND)
        self._jump = jump
        self.after_fork()
        reset_after_fork(self)

    def after_fork(self) -> None:
        """Drop the lock and all sleepers: in a forked child their threads do not exist."""
        self._changed = threading.Condition()
        self._deadlines: list[int] = []

    def now(self) -> int:
        """Return the µs since the zero of the clock."""
        return self._now

    @property
    def sleeping(self) -> tuple[float, ...]:
        """Deadlines of the threads and coroutines that sleep now, in seconds, sorted."""
        with self._changed:
            return tuple(sorted(deadline / SECOND for deadline in self._deadlines if deadline > self._now))

    def advance(self, seconds: float) -> None:
        """Move the clock by *seconds*. A negative number steps it back, as setting a wall clock can."""
        moved = round(check_number("seconds", seconds, "a number of seconds", minimum=-math.inf) * SECOND)
        with self._changed:
            self._now += moved
            self._changed.notify_all()

    def sleep(self, seconds: float, wake: threading.Event) -> None:
        """See :class:`bucketflow.clock.Clock`."""
        deadline = self._add_sleeper(seconds)
        try:
            while not wake.is_set() and not self._reached(deadline):
                with self._changed:
                    self._changed.wait(0.001)  # polled, because setting wake does not notify this condition
        finally:
            self._remove_sleeper(deadline)

    async def sleep_async(self, seconds: float, wake: asyncio.Event) -> None:
        """See :class:`bucketflow.clock.Clock`."""
        deadline = self._add_sleeper(seconds)
        try:
            await asyncio.sleep(0)  # first let tasks add their deadlines that are about to sleep for less time
            while not wake.is_set() and not self._reached(deadline):
                if self._jump:
                    await asyncio.sleep(0)
                else:  # polled, because another thread may call advance()
                    await SYSTEM_CLOCK.sleep_async(0.001, wake)
        finally:
            self._remove_sleeper(deadline)

    def _add_sleeper(self, seconds: float) -> int:
        with self._changed:
            deadline = self._now + round(min(seconds, threading.TIMEOUT_MAX) * SECOND)
            self._deadlines.append(deadline)
        return deadline

    def _remove_sleeper(self, deadline: int) -> None:
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
    Return the tokens by which the worst window of *starts* exceeds *limit*; 0 or less if no window does.

    A window from one start to another, both included, may cost ``capacity + fill_rate × length`` tokens.

    Args:
        starts: Time in seconds and cost in tokens of each start, ordered by time.
        limit: The limit that the starts had to obey.
    """
    worst = worst_window(limit, starts)
    return -limit.capacity if worst is None else worst.over
