"""The quick way into a bucket, past its lock, for those who neither wait nor meet anybody; and how it is closed."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Generic, Protocol, TypeVar

__all__ = ["NO_WAY", "Closed", "Guarded", "taking"]


class Guarded(Protocol):
    """
    What has a quick way.

    It is a :class:`~bucketflow.algorithm.wait_queue.Line` or a :class:`~bucketflow.algorithm.wait_tree.Tree`.

    While nobody waits in it and nobody works on it, its list ``idle`` holds one item. Whoever pops that item has it to
    himself until he appends it again: ``list.pop`` and ``list.append`` are atomic, on free-threaded builds too, and
    cost a third of what a lock does. Who finds the list empty takes the lock, and then waits for the item.

    Threads pop with ``for item in taking(idle)``: after a call, but not after a step of a loop, Python looks for
    signals, and a Ctrl-C between the pop and the ``try`` would close the quick way for ever.
    """

    def take_up(self) -> bool:
        """Take the item out of ``idle``, if it is not out already. Return False if a quick caller has it."""

    def lay_down(self) -> None:
        """Put the item back, unless somebody waits."""


def taking(idle: list[float]) -> Iterator[float]:
    """Return an iterator whose every step pops from *idle*, or raises IndexError."""
    return iter(idle.pop, math.nan)  # which no item equals: it never ends


#: For those who may not pass quickly.
NO_WAY = taking([])

G = TypeVar("G", bound=Guarded)


class Closed(Generic[G]):
    """
    Keeps quick callers out of a ``with`` block, and a lock the others: ``with lock, closed as guarded``.

    Args:
        guarded: What the block works on; ``with`` returns it.
    """

    __slots__ = ("_guarded",)

    def __init__(self, guarded: G) -> None:
        self._guarded = guarded

    def __enter__(self) -> G:
        while not self._guarded.take_up():
            time.sleep(0)  # let a quick caller finish: he neither sleeps nor waits for anything
        return self._guarded

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._guarded.lay_down()  # if a Ctrl-C prevents it, the next one who comes with the lock does it
