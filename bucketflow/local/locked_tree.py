"""Lock, clock and blocking wait that the buckets of one tree share."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from bucketflow.algorithm.gcra import FULL
from bucketflow.algorithm.wait_tree import Path, Waiter, WaitTree
from bucketflow.fork import reset_after_fork
from bucketflow.limit import SECOND
from bucketflow.local.fast_path import FastPathState

if TYPE_CHECKING:
    from bucketflow.clock import Clock

__all__ = ["LockedTree"]


class LockedTree:
    """
    A :class:`~bucketflow.algorithm.wait_tree.WaitTree` with a lock and a clock. No caller sleeps under the lock.

    Args:
        clock: Of the whole tree.

    Attributes:
        clock: As given.
        tree: The waiters of the tree.
        lock: Protects *tree*: ``with lock, state as tree``.
        state: Ownership of *tree*; the fast path uses its ``slot`` without the lock.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.tree = WaitTree()
        self.lock = threading.Lock()
        self.state = FastPathState(self.tree)
        reset_after_fork(self)

    def after_fork(self) -> None:
        """Drop the lock and all waiters: in a forked child their threads do not exist."""
        self.lock = threading.Lock()
        self.tree.waiters = []
        self.state.after_fork(FULL)

    def wait(self, path: Path, cost: float, timeout: float | None) -> bool:
        """
        Block until *cost* tokens are taken at every level of *path*, or until *timeout*.

        Args:
            path: Buckets, root first; length = depth >= 1.
            cost: Tokens, >= 0.
            timeout: Seconds; ``None``: no limit.

        Returns:
            Whether the tokens were taken.
        """
        wake = threading.Event()
        waiter = Waiter(path, cost, wake.set)
        try:
            with self.lock, self.state as tree:
                now = self.clock.now()
                deadline = None if timeout is None else now + round(timeout * SECOND)
                if deadline is None or now + max(tree.waits(path, now, cost)) <= deadline:
                    tree.join(waiter, now)
            while self._sleep(waiter, wake, deadline):
                pass
        except BaseException:  # also KeyboardInterrupt: an interrupted caller must not keep its position
            self._cancel(waiter)
            raise
        if not waiter.granted:
            self._cancel(waiter)
        return waiter.granted

    def _sleep(self, waiter: Waiter, wake: threading.Event, deadline: int | None) -> bool:
        """Sleep until *waiter* must retry. Return False once it no longer waits, or cannot be granted in time."""
        with self.lock, self.state as tree:
            now = self.clock.now()
            tree.grant_due(now)
            wake.clear()  # under the lock, because it is set under the lock only
            if waiter not in tree.waiters:
                return False
            until = deadline if waiter.retry_at is None else waiter.retry_at
        if until is None:
            wake.wait()
        elif deadline is not None and (until > deadline or deadline <= now):
            return False
        else:
            self.clock.sleep((until - now) / SECOND, wake)
        return True

    def _cancel(self, waiter: Waiter) -> None:
        with self.lock, self.state as tree:
            tree.cancel(waiter, self.clock.now())
