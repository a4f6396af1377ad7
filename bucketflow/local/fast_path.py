"""The quick way into a bucket, past its lock, for those who neither wait nor meet anybody; and how it is closed."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Generic, Protocol, TypeVar

__all__ = ["DISABLED", "FastPathState", "SlowPath", "popping"]


class FastPathState(Protocol):
    """
    What has a quick way.

    It is a :class:`~bucketflow.algorithm.wait_queue.WaitQueue` or a :class:`~bucketflow.algorithm.wait_tree.WaitTree`.

    While nobody waits in it and nobody works on it, its list ``slot`` holds one item. Whoever pops that item has it to
    himself until he appends it again: ``list.pop`` and ``list.append`` are atomic, on free-threaded builds too, and
    cost a third of what a lock does. Who finds the list empty takes the lock, and then waits for the item.

    Threads pop with ``for item in popping(slot)``: after a call, but not after a step of a loop, Python looks for
    signals, and a Ctrl-C between the pop and the ``try`` would close the quick way for ever.
    """

    def acquire(self) -> bool:
        """Take the item out of ``slot``, if it is not out already. Return False if a quick caller has it."""

    def release(self) -> None:
        """Put the item back, unless somebody waits."""


def popping(slot: list[float]) -> Iterator[float]:
    """Return an iterator whose every step pops from *slot*, or raises IndexError."""
    return iter(slot.pop, math.nan)  # which no item equals: it never ends


#: For those who may not pass quickly.
DISABLED = popping([])

G = TypeVar("G", bound=FastPathState)


class SlowPath(Generic[G]):
    """
    Keeps quick callers out of a ``with`` block, and a lock the others: ``with lock, closed as state``.

    Args:
        state: What the block works on; ``with`` returns it.
    """

    __slots__ = ("_state",)

    def __init__(self, state: G) -> None:
        self._state = state

    def __enter__(self) -> G:
        while not self._state.acquire():
            time.sleep(0)  # let a quick caller finish: he neither sleeps nor waits for anything
        return self._state

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._state.release()  # if a Ctrl-C prevents it, the next one who comes with the lock does it
