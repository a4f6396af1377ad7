"""Give leases back when nobody has used them for a while; a watch runs only while there is something to give back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any
from weakref import WeakKeyDictionary, WeakMethod

from bucketflow.forks import forget_after_fork
from bucketflow.redis_lease import LeasedPath

__all__ = ["AsyncLeaseWatch", "ThreadLeaseWatch"]

#: Seconds between two looks: a lease that nobody used from one to the next goes back.
IDLE = 1.0


class ThreadLeaseWatch:
    """
    Watches from a daemon thread.

    Args:
        path: What may be on lease.
        give_back: A method that settles it; of an object that may go away meanwhile.
    """

    def __init__(self, path: LeasedPath, give_back: Callable[[], None]) -> None:
        self._path = path
        self._give_back = WeakMethod(give_back)
        self.after_fork()
        forget_after_fork(self)

    def after_fork(self) -> None:
        """Begin anew: the thread is the parent's."""
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._runs = False

    def wake(self) -> None:
        """Watch, if there is something to watch."""
        if not self._runs and self._path.left > 0:
            with self._lock:
                if not self._runs:
                    self._runs = True
                    self._closed.clear()
                    threading.Thread(target=self._run, name="bucketflow-lease", daemon=True).start()

    def close(self) -> None:
        """End the watch."""
        self._closed.set()

    def _run(self) -> None:
        left = self._path.left
        while left > 0 and not self._closed.wait(IDLE):
            left = self._look(left)
        self._runs = False
        if not self._closed.is_set():
            self.wake()  # unless somebody leased between the last look and this line

    def _look(self, before: float) -> float:
        """Give back what is still there as it was *before*; return what is left."""
        give_back = self._give_back()
        if give_back is None:
            return 0.0
        if self._path.left == before:
            give_back()
        return self._path.left


class AsyncLeaseWatch:
    """
    Watches from every event loop that leases.

    Args:
        path: What may be on lease.
        give_back: A coroutine method, see :class:`ThreadLeaseWatch`.
    """

    def __init__(self, path: LeasedPath, give_back: Callable[[], Awaitable[None]]) -> None:
        self._path = path
        self._give_back: WeakMethod[Callable[[], Any]] = WeakMethod(give_back)
        self._timers: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.TimerHandle] = WeakKeyDictionary()
        self._tasks: set[asyncio.Future[None]] = set()

    def wake(self) -> None:
        """Watch from this loop, if there is something to watch."""
        loop = asyncio.get_running_loop()
        if loop not in self._timers and self._path.left > 0:
            self._timers[loop] = loop.call_later(IDLE, self._look, loop, self._path.left)

    def close(self) -> None:
        """End the watch from this loop."""
        timer = self._timers.pop(asyncio.get_running_loop(), None)
        if timer is not None:
            timer.cancel()

    def _look(self, loop: asyncio.AbstractEventLoop, before: float) -> None:
        self._timers.pop(loop, None)
        give_back, left = self._give_back(), self._path.left
        if give_back is None or left == 0:
            return
        if left == before:
            task = asyncio.ensure_future(give_back())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._timers[loop] = loop.call_later(IDLE, self._look, loop, left)
