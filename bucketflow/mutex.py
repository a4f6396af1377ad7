"""The lock of a bucket, with a quick way past it for those who neither wait nor meet anybody."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Generic, Protocol, TypeVar

__all__ = ["CLOSED", "Guarded", "Mutex", "taking"]


class Guarded(Protocol):
    """
    What a mutex guards: a :class:`~bucketflow.line.Line` or a :class:`~bucketflow.tree.Tree`.

    While nobody waits in it and nobody works on it, its list ``idle`` holds one item. Whoever pops that item has it to
    himself until he appends it again: ``list.pop`` and ``list.append`` are atomic, on free-threaded builds too, and
    cost a third of what a lock does. So may a quick caller who, finding the list empty, comes again through the mutex.

    Threads pop with ``for item in taking(idle)``: after a call, but not after a step of a loop, Python looks for
    signals, and a Ctrl-C between the pop and the ``try`` would leave the bucket closed for ever.
    """

    def take_up(self) -> bool:
        """Take the item out of ``idle``, unless somebody waits. Return False if a quick caller has it."""

    def lay_down(self) -> None:
        """Put the item back, unless somebody waits."""


def taking(idle: list[float]) -> Iterator[float]:
    """Return an iterator whose every step pops from *idle*, or raises IndexError."""
    return iter(idle.pop, math.nan)  # which no item equals: it never ends


#: For those who may not pass quickly.
CLOSED = taking([])

G = TypeVar("G", bound=Guarded)


class Mutex(Generic[G]):
    """
    Lets one thread at a time into a ``with`` block, and no quick caller beside it.

    Args:
        guarded: What the block works on; ``with`` returns it.
    """

    __slots__ = ("_guarded", "_lock")

    def __init__(self, guarded: G) -> None:
        self._guarded = guarded
        self._lock = threading.Lock()

    def __enter__(self) -> G:
        self._lock.acquire()
        try:
            while not self._guarded.take_up():
                time.sleep(0)  # let a quick caller finish: it neither sleeps nor waits for anything
        except BaseException:
            self._lock.release()
            raise
        return self._guarded

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._guarded.lay_down()
        finally:
            self._lock.release()
