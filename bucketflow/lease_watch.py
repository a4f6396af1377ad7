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
        if self._path.holds and not self._runs:
            with self._lock:
                if not self._runs:
                    self._runs = True
                    self._closed.clear()
                    threading.Thread(target=self._run, name="bucketflow-lease", daemon=True).start()

    def close(self) -> None:
        """End the watch."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(IDLE) and self._look():
            pass
        self._runs = False
        if not self._closed.is_set():
            self.wake()  # unless somebody leased between the last look and this line

    def _look(self) -> bool:
        """Give back what was not used; return whether to look again."""
        give_back = self._give_back()
        if give_back is None:
            return False
        if not self._path.was_used():
            give_back()
        return self._path.holds


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
        if self._path.holds and loop not in self._timers:
            self._timers[loop] = loop.call_later(IDLE, self._look, loop)

    def close(self) -> None:
        """End the watch from this loop."""
        timer = self._timers.pop(asyncio.get_running_loop(), None)
        if timer is not None:
            timer.cancel()

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timers.pop(loop, None)
        give_back = self._give_back()
        if give_back is None or not self._path.holds:
            return
        if self._path.was_used():
            self._timers[loop] = loop.call_later(IDLE, self._look, loop)
        else:
            task = asyncio.ensure_future(give_back())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
