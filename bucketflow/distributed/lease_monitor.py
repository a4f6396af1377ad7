"""Give leases back when nobody has used them for a while; a watch runs only while there is something to give back."""

from __future__ import annotations

import asyncio
import threading
from weakref import WeakKeyDictionary

from bucketflow.distributed.leased_path import LeasedPath
from bucketflow.fork import reset_after_fork
from bucketflow.redis_client.runner import AsyncScriptRunner, ScriptRunner

__all__ = ["AsyncLeaseMonitor", "ThreadLeaseMonitor"]

#: Seconds between two looks: a lease that nobody used from one to the next goes back.
IDLE = 1.0


class ThreadLeaseMonitor:
    """
    Watches from a daemon thread, which outlives its bucket if somebody forgot to close that.

    Args:
        path: What may be on lease.
        runner: Runs the call that settles it. If Redis does not answer, what is on lease is left to fade.
    """

    def __init__(self, path: LeasedPath, runner: ScriptRunner) -> None:
        self._path = path
        self._runner = runner
        self.after_fork()
        reset_after_fork(self)

    def after_fork(self) -> None:
        """Begin anew: the thread is the parent's."""
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._runs = False

    def wake(self) -> None:
        """Watch, if there is something to watch."""
        if self._runs or self._path.left <= 0:
            return
        with self._lock:
            if not self._runs:
                self._runs = True
                self._closed.clear()
                try:
                    threading.Thread(target=self._run, name="bucketflow-lease", daemon=True).start()
                except RuntimeError:  # no thread can be had, or the interpreter ends: the lease fades by itself
                    self._runs = False

    def close(self) -> None:
        """End the watch, and give back what there is."""
        self._closed.set()
        self._give_back()

    def _run(self) -> None:
        try:
            left = self._path.left
            while left > 0 and not self._closed.wait(IDLE):
                if self._path.left == left:
                    self._give_back()
                left = self._path.left
        finally:
            self._runs = False
        if not self._closed.is_set():
            self.wake()  # unless somebody leased between the last look and the line before

    def _give_back(self) -> None:
        call = self._path.give_back()
        if call is not None:
            self._runner.run_all([call])


class AsyncLeaseMonitor:
    """
    Watches from every event loop that leases.

    Args:
        path: What may be on lease.
        runner: See :class:`ThreadLeaseMonitor`.
    """

    def __init__(self, path: LeasedPath, runner: AsyncScriptRunner) -> None:
        self._path = path
        self._runner = runner
        self._timers: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.TimerHandle] = WeakKeyDictionary()
        self._tasks: set[asyncio.Future[None]] = set()

    def wake(self) -> None:
        """Watch from this loop, if there is something to watch."""
        loop = asyncio.get_running_loop()
        if loop not in self._timers and self._path.left > 0:
            for other in [other for other in self._timers if other.is_closed()]:
                self._timers.pop(other, None)  # it would stay: its timer knows it
            self._timers[loop] = loop.call_later(IDLE, self._look, loop, self._path.left)

    async def close(self) -> None:
        """End the watch from this loop, and give back what there is."""
        timer = self._timers.pop(asyncio.get_running_loop(), None)
        if timer is not None:
            timer.cancel()
        await self._give_back()

    def _look(self, loop: asyncio.AbstractEventLoop, before: float) -> None:
        self._timers.pop(loop, None)
        left = self._path.left
        if left == before:
            task = asyncio.ensure_future(self._give_back())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif left > 0:
            self._timers[loop] = loop.call_later(IDLE, self._look, loop, left)

    async def _give_back(self) -> None:
        call = self._path.give_back()
        if call is not None:
            await self._runner.run_all([call])
