"""What the buckets of one tree share, and how their callers wait."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from bucketflow.algorithm.wait_tree import Path, Waiter, WaitTree
from bucketflow.limit import SECOND
from bucketflow.local.fast_path import SlowPath

if TYPE_CHECKING:
    from bucketflow.clock import Clock

__all__ = ["LockedTree"]


class LockedTree:
    """
    A tree, its lock and its clock. The lock is never held while anybody sleeps.

    Args:
        clock: Of the whole tree.

    Attributes:
        clock: As given.
        tree: Who waits. Its ``slot`` is open to quick callers; for the rest: ``with lock, closed as tree``.
        lock: See *tree*.
        closed: See *tree*.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.tree = WaitTree()
        self.lock = threading.Lock()
        self.slow_path = SlowPath(self.tree)

    def wait(self, path: Path, cost: float, timeout: float | None) -> bool:
        """Block until *cost* tokens were taken at every level of *path*, for *timeout* seconds at most."""
        wake = threading.Event()
        waiter = Waiter(path, cost, wake.set)
        try:
            with self.lock, self.slow_path as tree:
                now = self.clock.now()
                deadline = None if timeout is None else now + round(timeout * SECOND)
                if deadline is None or now + max(tree.waits(path, now, cost)) <= deadline:
                    tree.join(waiter, now)
            while self._sleep(waiter, wake, deadline):
                pass
        except BaseException:  # also KeyboardInterrupt: it must not leave a hole in the line
            self._abandon(waiter)
            raise
        if not waiter.granted:
            self._abandon(waiter)
        return waiter.granted

    def _sleep(self, waiter: Waiter, wake: threading.Event, deadline: int | None) -> bool:
        """Sleep until *waiter* should look again. Return False once there is nothing left to wait for."""
        with self.lock, self.slow_path as tree:
            now = self.clock.now()
            tree.serve(now)
            wake.clear()  # under the lock, where alone it is set
            if waiter not in tree.waiting:
                return False
            until = deadline if waiter.at is None else waiter.at
        if until is None:
            wake.wait()
        elif deadline is not None and (until > deadline or deadline <= now):
            return False
        else:
            self.clock.sleep((until - now) / SECOND, wake)
        return True

    def _abandon(self, waiter: Waiter) -> None:
        with self.lock, self.slow_path as tree:
            tree.cancel(waiter, self.clock.now())
