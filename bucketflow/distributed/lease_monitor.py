"""Return of idle leases. One monitor watches all leased paths of a client, as long as they hold tokens."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, MutableMapping
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, ref

from bucketflow.distributed.leased_path import LeasedPath
from bucketflow.errors import StoreUnavailable
from bucketflow.fork import reset_after_fork
from bucketflow.redis_client.in_process import AsyncRunner, Runner
from bucketflow.redis_client.topology import ScriptCall

__all__ = ["AsyncLeaseMonitor", "ThreadLeaseMonitor", "monitor_of"]

#: Seconds between two checks. Leases that were not used between them are returned.
CHECK_INTERVAL = 1.0


class _Watched:
    """The paths that hold tokens, each with the tokens that it held at the last check."""

    def __init__(self) -> None:
        self._left: dict[LeasedPath, float] = {}

    def __contains__(self, path: LeasedPath) -> bool:
        return path in self._left

    def __len__(self) -> int:
        return len(self._left)

    def add(self, path: LeasedPath) -> None:
        self._left[path] = path.left

    def discard(self, path: LeasedPath) -> None:
        self._left.pop(path, None)

    def idle(self) -> list[LeasedPath]:
        """Return the paths that were not used since the last check. Forget those without tokens."""
        idle = []
        for path, before in list(self._left.items()):
            left = path.left
            if left == before:
                idle.append(path)
            self._left[path] = left
            if left <= 0:
                self.discard(path)
                if path.left > 0:  # a lease arrived just now, while the path seemed to be watched
                    self.add(path)
        return idle


class ThreadLeaseMonitor:
    """
    Watches paths from one daemon thread, which also returns the leases of a bucket that was never closed.

    Args:
        runner: Runs the calls that return leases, one at a time. If Redis does not reply, the leases decay instead.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.after_fork()
        reset_after_fork(self)

    def after_fork(self) -> None:
        """Reset the monitor: in a forked child its thread does not exist."""
        self._lock = threading.Lock()
        self._watched = _Watched()
        self._nothing_watched = threading.Event()
        self._runs = False

    def watch(self, path: LeasedPath) -> None:
        """Watch *path*, unless it is watched or holds no tokens."""
        if path in self._watched or path.left <= 0:
            return
        with self._lock:
            self._watched.add(path)
            self._nothing_watched.clear()
            if self._runs:
                return
            self._runs = True
            try:
                threading.Thread(target=self._run, name="bucketflow-leases", daemon=True).start()
            except RuntimeError:  # no thread available, or the interpreter is shutting down: the lease decays
                self._runs = False
                self._watched.discard(path)

    def close(self, path: LeasedPath) -> None:
        """Return the leased tokens of *path*."""
        with self._lock:
            self._watched.discard(path)
            if not self._watched:
                self._nothing_watched.set()
        self._return_tokens(path)

    def _run(self) -> None:
        while True:
            self._nothing_watched.wait(CHECK_INTERVAL)
            with self._lock:
                idle = self._watched.idle()
            for path in idle:
                if not self._return_tokens(path):
                    break  # the others decay, or are returned after a later check
            with self._lock:
                if not self._watched:
                    self._runs = False
                    return

    def _return_tokens(self, path: LeasedPath) -> bool:
        call = path.settle()
        return call is None or _has_arrived(self._runner.run_all([call]))


class AsyncLeaseMonitor:
    """
    Watches paths with a timer in each event loop that leases tokens.

    Args:
        runner: See :class:`ThreadLeaseMonitor`.
    """

    def __init__(self, runner: AsyncRunner) -> None:
        self._runner = runner
        self._watched: WeakKeyDictionary[asyncio.AbstractEventLoop, _Watched] = WeakKeyDictionary()
        self._timers: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.TimerHandle] = WeakKeyDictionary()
        self._tasks: set[asyncio.Future[None]] = set()

    def watch(self, path: LeasedPath) -> None:
        """Watch *path* in this loop, unless it is watched or holds no tokens."""
        loop = asyncio.get_running_loop()
        watched = self._watched.get(loop)
        if path.left <= 0 or (watched is not None and path in watched):
            return
        if watched is None:
            _drop_closed_loops(self._watched)
            watched = self._watched[loop] = _Watched()
        watched.add(path)
        self._start_timer(loop)

    async def close(self, path: LeasedPath) -> None:
        """Return the leased tokens of *path*."""
        watched = self._watched.get(asyncio.get_running_loop())
        if watched is not None:
            watched.discard(path)
        await self._return_tokens(path)

    def _start_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop not in self._timers:
            _drop_closed_loops(self._timers)
            self._timers[loop] = loop.call_later(CHECK_INTERVAL, self._check, loop)

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timers.pop(loop, None)
        watched = self._watched[loop]
        # One at a time: while Redis is slow, each further task would open a connection of its own.
        idle = [] if any(task.get_loop() is loop for task in self._tasks) else watched.idle()
        if idle:
            task = asyncio.ensure_future(self._return_all(idle))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if watched:
            self._start_timer(loop)

    async def _return_all(self, paths: list[LeasedPath]) -> None:
        for path in paths:
            if not await self._return_tokens(path):
                return

    async def _return_tokens(self, path: LeasedPath) -> bool:
        call: ScriptCall | None = path.settle()
        return call is None or _has_arrived(await self._runner.run_all([call]))


def _has_arrived(replies: list[object]) -> bool:
    return not isinstance(replies[0], StoreUnavailable)


V = TypeVar("V")


def _drop_closed_loops(by_loop: MutableMapping[asyncio.AbstractEventLoop, V]) -> None:
    # What is kept for a closed loop refers to the loop, so the weak key alone would never be collected.
    for closed in [loop for loop in by_loop if loop.is_closed()]:
        by_loop.pop(closed, None)


RunnerT = TypeVar("RunnerT", Runner, AsyncRunner)
MonitorT = TypeVar("MonitorT", ThreadLeaseMonitor, AsyncLeaseMonitor)

#: The monitor of each runner. The buckets own both, so the last bucket leaves no connection behind.
_monitors: WeakKeyDictionary[Any, ref[Any]] = WeakKeyDictionary()


def monitor_of(kind: Callable[[RunnerT], MonitorT], runner: RunnerT) -> MonitorT:
    """Return the monitor, of class *kind*, of all paths of *runner*."""
    reference = _monitors.get(runner)
    monitor: MonitorT | None = None if reference is None else reference()
    if monitor is None:
        monitor = kind(runner)
        _monitors[runner] = ref(monitor)
    return monitor
