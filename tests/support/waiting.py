"""Threads that wait in a known order, on a clock that only the test moves."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from bucketflow import HierarchicalTokenBucket
from bucketflow.testing import FakeClock


def until(condition):
    """Return once *condition* holds; give up after far longer than any machine needs."""
    give_up = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up, "it never happened"
        time.sleep(0.0005)


class Queue:
    """Callers of one bucket, each in a thread of its own, who came one after the other."""

    def __init__(self):
        self.clock = FakeClock(jump=False)
        self.pool = ThreadPoolExecutor(64)
        self.served = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.clock.advance(1e6)  # a test that failed must not leave its threads behind
        self.pool.shutdown(cancel_futures=True)

    def bucket(self, kind, capacity, fill_rate, initial_tokens=0):
        """Make the bucket, empty unless told otherwise."""
        self._bucket = kind(capacity, fill_rate, initial_tokens=initial_tokens, clock=self.clock)
        return self._bucket

    def _waiting(self):
        """Return how many wait, and how many of them know until when: in a tree, only who waits for no other."""
        if isinstance(self._bucket, HierarchicalTokenBucket):
            waiting = len(self._bucket._tree.tree.waiting)
            return waiting, min(1, waiting)
        waiting = len(self._bucket._queue.waiters)
        return waiting, waiting

    def add(self, name, *args, **kwargs):
        """Let somebody ``consume(*args, block=True, **kwargs)``; return the future once he waits."""
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
        """Return once *served* were served and the others sleep until *instants*, in seconds."""
        until(lambda: self.served == served)
        until(lambda: self.clock.sleeping == instants[: self._waiting()[1]])
