"""
Lock-free fast path for ``consume`` calls that neither wait nor meet another caller.

The locked path is complete without this module. A granted call takes, by docs/benchmarks.md:

================== ================== ============================
ns a call          with the fast path a minimal bucket with a lock
================== ================== ============================
1 thread           237                311
4 threads          244                852
1 thread, 3 levels 449                570
================== ================== ============================

The price is the arithmetic of :mod:`bucketflow.algorithm.gcra`, repeated in three ``consume`` methods. To remove the
fast path, let these methods call ``_consume`` at once, and replace ``with lock, state`` by ``with lock``. The locked
path also serves waiters and returns decisions, and takes at least 10 times as long as the fast path. It must become
faster before the fast path is removed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sized
from types import TracebackType
from typing import Generic, Protocol, TypeVar

__all__ = ["DISABLED", "FastPathState", "popping"]


class _QueueState(Protocol):
    """A :class:`~bucketflow.algorithm.wait_queue.WaitQueue` or :class:`~bucketflow.algorithm.wait_tree.WaitTree`."""

    full_at: float

    @property
    def waiters(self) -> Sized: ...


S = TypeVar("S", bound=_QueueState)


def popping(slot: list[float]) -> Iterator[float]:
    """Return an iterator whose every step pops from *slot*, or raises IndexError."""
    return iter(slot.pop, math.nan)  # no item equals NaN, so the iterator never ends


#: For calls that must take the lock.
DISABLED = popping([])


class FastPathState(Generic[S]):
    """
    Exclusive ownership of a bucket's state, for the fast path or for a caller that holds the lock.

    The list ``slot`` holds one item, the ``full_at`` of the state, while the state has neither an owner nor waiters. A
    caller that pops the item owns the state until it appends the item again. ``list.pop`` and ``list.append`` are
    atomic, also on free-threaded builds, and cost a third of a lock.

    A caller that finds the slot empty takes the lock and then waits for the item: ``with lock, state as queue``.

    Threads pop with ``for item in popping(slot)``. CPython looks for signals after a call, but not after a step of a
    loop. A Ctrl-C between a call of ``pop`` and the ``try`` would lose the item and block the bucket for ever.

    Args:
        state: What a ``with`` block works on; ``with`` returns it.

    Attributes:
        slot: ``[full_at]``, or empty while the state has an owner or waiters.
    """

    __slots__ = ("_acquired", "_pop", "_state", "slot")

    def __init__(self, state: S) -> None:
        self._state = state
        self._acquired = False
        self.slot = [state.full_at]
        self._pop = popping(self.slot)

    def acquire(self) -> bool:
        """Take the item out of the slot, unless it is out already. Return False while a fast-path caller has it."""
        if not self._acquired:
            try:
                for full_at in self._pop:
                    self._state.full_at, self._acquired = full_at, True
                    break
            except IndexError:
                return False
        return True

    def release(self) -> None:
        """Return the item to the slot, unless there are waiters."""
        if not self._state.waiters:
            self._acquired = False
            self.slot.append(self._state.full_at)

    def after_fork(self, empty: float) -> None:
        """
        Take the state from an owner that does not exist in a forked child. The state has no waiters.

        An owner on the fast path has taken ``full_at`` with it. The bucket then counts as empty.

        Args:
            empty: ``full_at`` of an empty bucket.
        """
        if self.slot:
            self._state.full_at = self.slot[0]
        elif not self._acquired:
            self._state.full_at = empty
        self._acquired = False
        self.slot[:] = [self._state.full_at]

    def __enter__(self) -> S:
        while not self.acquire():
            time.sleep(0)  # let the fast-path caller finish: it neither sleeps nor waits
        return self._state

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()  # if a Ctrl-C prevents it, the next caller that holds the lock releases
