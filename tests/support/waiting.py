"""Threads that wait in a known order, on a fake clock."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from bucketflow import HierarchicalTokenBucket
from bucketflow.testing import FakeClock


def until(condition):
    """Return once *condition* holds. Fail after 30 s, far longer than any machine needs."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.0005)


class BlockedCallers:
    """Blocked callers of one bucket, each in a thread of its own, in order of arrival."""

    def __init__(self):
        self.clock = FakeClock(jump=False)
        self.pool = ThreadPoolExecutor(64)
        self.served = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.clock.advance(1e6)  # so that a failed test leaves no thread blocked
        self.pool.shutdown(cancel_futures=True)

    def bucket(self, kind, capacity, fill_rate, initial_tokens=0):
        """Create the bucket, empty by default."""
        self._bucket = kind(capacity, fill_rate, initial_tokens=initial_tokens, clock=self.clock)
        return self._bucket

    def _waiting(self):
        """Return how many callers wait, and how many of them have a grant time: in a tree, only the first."""
        if isinstance(self._bucket, HierarchicalTokenBucket):
            waiting = len(self._bucket._tree.tree.waiters)
            return waiting, min(1, waiting)
        waiting = len(self._bucket._queue.waiters)
        return waiting, waiting

    def add(self, name, *args, **kwargs):
        """Start a caller of ``consume(*args, block=True, **kwargs)``. Return its future once it waits."""
        before, _ = self._waiting()
        future = self.pool.submit(self._run, name, args, kwargs)
        until(lambda: future.done() or self._waiting() == (before + 1, len(self.clock.sleeping)))
        return future

    def _run(self, name, args, kwargs):
        granted = self._bucket.consume(*args, block=True, **kwargs)
        if granted:
            self.served.append(name)
        return granted

    def until(self, served, *instants):
        """Return once the callers *served* are served and the others sleep until *instants*, in seconds."""
        until(lambda: self.served == served)
        until(lambda: self.clock.sleeping == instants[: self._waiting()[1]])
