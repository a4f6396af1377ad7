"""Return of idle leases: a monitor runs only while its path holds leased tokens."""

from __future__ import annotations

import asyncio
import threading
from weakref import WeakKeyDictionary

from bucketflow.distributed.leased_path import LeasedPath
from bucketflow.fork import reset_after_fork
from bucketflow.redis_client.runner import AsyncScriptRunner, ScriptRunner

__all__ = ["AsyncLeaseMonitor", "ThreadLeaseMonitor"]

#: Seconds between two checks. Leases that were not used between them are returned.
CHECK_INTERVAL = 1.0


class ThreadLeaseMonitor:
    """
    Monitors a path from a daemon thread, which also returns the leases of a bucket that was never closed.

    Args:
        path: The path that leases tokens.
        runner: Runs the call that returns them. If Redis does not reply, the leases decay instead.
    """

    def __init__(self, path: LeasedPath, runner: ScriptRunner) -> None:
        self._path = path
        self._runner = runner
        self.after_fork()
        reset_after_fork(self)

    def after_fork(self) -> None:
        """Reset the monitor: in a forked child its thread does not exist."""
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._runs = False

    def wake(self) -> None:
        """Start the thread, unless it runs or the path holds no tokens."""
        if self._runs or self._path.left <= 0:
            return
        with self._lock:
            if not self._runs:
                self._runs = True
                self._closed.clear()
                try:
                    threading.Thread(target=self._run, name="bucketflow-lease", daemon=True).start()
                except RuntimeError:  # no thread available, or the interpreter is shutting down: the lease decays
                    self._runs = False

    def close(self) -> None:
        """Stop the thread, and return the leased tokens."""
        self._closed.set()
        self._return_tokens()

    def _run(self) -> None:
        try:
            left = self._path.left
            while left > 0 and not self._closed.wait(CHECK_INTERVAL):
                if self._path.left == left:
                    self._return_tokens()
                left = self._path.left
        finally:
            self._runs = False
        if not self._closed.is_set():
            self.wake()  # a lease may have arrived after the last check, while wake() still saw this thread

    def _return_tokens(self) -> None:
        call = self._path.settle()
        if call is not None:
            self._runner.run_all([call])


class AsyncLeaseMonitor:
    """
    Monitors a path with a timer in each event loop that leases tokens.

    Args:
        path: The path that leases tokens.
        runner: See :class:`ThreadLeaseMonitor`.
    """

    def __init__(self, path: LeasedPath, runner: AsyncScriptRunner) -> None:
        self._path = path
        self._runner = runner
        self._timers: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.TimerHandle] = WeakKeyDictionary()
        self._tasks: set[asyncio.Future[None]] = set()

    def wake(self) -> None:
        """Start this loop's timer, unless it runs or the path holds no tokens."""
        loop = asyncio.get_running_loop()
        if loop not in self._timers and self._path.left > 0:
            # A closed loop's timer refers to the loop, so the weak key alone would never be collected.
            for closed in [known for known in self._timers if known.is_closed()]:
                self._timers.pop(closed, None)
            self._timers[loop] = loop.call_later(CHECK_INTERVAL, self._check, loop, self._path.left)

    async def close(self) -> None:
        """Stop this loop's timer, and return the leased tokens."""
        timer = self._timers.pop(asyncio.get_running_loop(), None)
        if timer is not None:
            timer.cancel()
        await self._return_tokens()

    def _check(self, loop: asyncio.AbstractEventLoop, before: float) -> None:
        self._timers.pop(loop, None)
        left = self._path.left
        if left == before:
            task = asyncio.ensure_future(self._return_tokens())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif left > 0:
            self._timers[loop] = loop.call_later(CHECK_INTERVAL, self._check, loop, left)

    async def _return_tokens(self) -> None:
        call = self._path.settle()
        if call is not None:
            await self._runner.run_all([call])
