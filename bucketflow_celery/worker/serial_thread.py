"""A thread that handles items one after another, from a queue that may be bounded."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Generic, TypeVar

__all__ = ["SerialThread"]

T = TypeVar("T")

logger = logging.getLogger("bucketflow_celery.worker")


class SerialThread(Generic[T]):
    """
    Handles items in the order in which they were put.

    The thread starts with the first item. It is a daemon: an item that takes for ever does not keep the process alive.

    Args:
        name: Of the thread.
        handle: Handles one item. What it raises is logged, and the next item follows.
        capacity: Most items that wait. Further ones are put when there is room.
    """

    def __init__(self, name: str, handle: Callable[[T], None], capacity: float = inf) -> None:
        self._name = name
        self._handle = handle
        self._capacity = capacity
        self._waiting: deque[T] = deque()
        self._busy = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        """Return the number of items that wait or are being handled."""
        with self._changed:
            return len(self._waiting) + self._busy

    @property
    def is_full(self) -> bool:
        """Whether :meth:`put` would wait."""
        return len(self._waiting) >= self._capacity

    def put(self, item: T) -> None:
        """Append *item*, as soon as there is room."""
        with self._changed:
            self._changed.wait_for(lambda: not self.is_full)
            self._waiting.append(item)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def clear(self) -> list[T]:
        """Remove the items that wait and return them. The one that is being handled stays."""
        with self._changed:
            removed = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        return removed

    def join(self, timeout: float) -> bool:
        """Wait for at most *timeout* seconds until all items are handled; return whether they are."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._busy, timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                item = self._waiting.popleft()
                self._busy = True
                self._changed.notify_all()
            try:
                self._handle(item)
            except BaseException:  # one item must not end the thread that handles all others
                logger.exception("%s: item failed", self._name)
            finally:
                del item  # else it lives until the next one comes
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()
