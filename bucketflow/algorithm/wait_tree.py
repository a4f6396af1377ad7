"""
The lines of a whole tree of buckets, and the rule that keeps them fair. No clock, no lock, no I/O.

Who waits, waits at the level that binds, and nobody overtakes it there; elsewhere the tree goes on. So one who waits
for its own bucket does not hold up its neighbours, and one who wants many tokens of the root is not starved by those
who want few. Because of these neighbours nobody's instant is known for sure ahead, unlike in
:class:`bucketflow.algorithm.wait_queue.Line`; whoever may go at ``at`` asks again then.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from bucketflow.algorithm.gcra import Decision, burst_tolerance, consume_path, refund, take, tokens_at, wait_for
from bucketflow.limit import SECOND, Limit

__all__ = ["BucketNode", "Path", "WaitTree", "Waiter", "put_back"]


class BucketNode:
    """
    One bucket of a tree.

    Args:
        limit: Of this bucket alone.
        full_at: The bucket at the start, in µs.
        label: What errors call it.

    Attributes:
        before: ``full_at`` before the latest call that took from this level, for :func:`put_back`.
        most: The most µs it may be behind after a grant, see :func:`bucketflow.algorithm.gcra.burst_tolerance`.
    """

    __slots__ = ("before", "fill_rate", "full_at", "label", "limit", "most")

    def __init__(self, limit: Limit, full_at: float, label: str) -> None:
        self.limit = limit
        self.full_at = full_at
        self.label = label
        self.before = full_at
        self.fill_rate = limit.fill_rate
        self.most = burst_tolerance(limit)


#: The levels that one call passes: length = depth >= 1, root first.
Path = tuple[BucketNode, ...]


class Waiter:
    """
    One who waits for *cost* tokens at every level of *path*.

    Args:
        path: Length = depth >= 1, root first.
        cost: Tokens, >= 0.
        wake: Called under the shell's lock when it was granted, or may ask sooner than it knew. Must not block.

    Attributes:
        at: µs at which to ask again; ``None`` while it stands behind another one.
        level: Where it waits.
        granted: Whether the tokens were taken.
    """

    __slots__ = ("at", "cost", "granted", "level", "path", "wake")

    def __init__(self, path: Path, cost: float, wake: Callable[[], object]) -> None:
        self.path = path
        self.cost = cost
        self.wake = wake
        self.at: int | None = None
        self.level: BucketNode | None = None
        self.granted = False


class WaitTree:
    """
    Everybody who waits in one tree, in the order in which they came. The states live in the levels.

    Attributes:
        waiting: Who waits, first come first.
        slot: ``[0.0]`` for quick callers, or nothing, see :class:`bucketflow.local.fast_path.FastPathState`.
    """

    __slots__ = ("_take", "_taken", "slot", "waiting")

    def __init__(self) -> None:
        self.waiting: list[Waiter] = []
        self.slot = [0.0]
        self._take = iter(self.slot.pop, math.nan)  # as in Line
        self._taken = False

    def acquire(self) -> bool:
        """See :class:`bucketflow.local.fast_path.FastPathState`."""
        if not self._taken:
            try:
                for _ in self._take:
                    self._taken = True
                    break
            except IndexError:
                return False
        return True

    def release(self) -> None:
        """See :class:`bucketflow.local.fast_path.FastPathState`."""
        if not self.waiting:
            self._taken = False
            self.slot.append(0.0)

    def decide(self, path: Path, now: int, cost: float) -> Decision:
        """
        Take *cost* tokens from every level of *path*, or from none; from none also if that would overtake somebody.

        ``retry_after`` counts those who wait at a level of the path. 0 tokens overtake nobody.
        """
        self.serve(now)
        if not cost or all(waiter.level not in path for waiter in self.waiting):
            return _take(path, now, cost)
        waits = self.waits(path, now, cost)
        left = tuple(tokens_at(level.limit, level.full_at, now) for level in path)
        return Decision(allowed=False, retry_after=max(waits) / SECOND, binding=waits.index(max(waits)), tokens=left)

    def waits(self, path: Path, now: int, cost: float) -> list[int]:
        """
        Return the µs until *cost* tokens are at each level, after those who wait at one of them were served.

        Returns:
            Same length and order as *path*. The longest is exact if nobody comes or leaves, and nobody waits
            elsewhere in the tree.
        """
        self.serve(now)
        ahead = [waiter for waiter in self.waiting if waiter.level in path] if cost else []
        waits = []
        for level in path:
            full_at = level.full_at
            for waiter in ahead:
                if level in waiter.path:
                    full_at = take(level.limit, full_at, now, waiter.cost)
            waits.append(wait_for(level.limit, full_at, now, cost))
        return waits

    def refund(self, path: Path, now: int, cost: float) -> None:
        """Give *cost* tokens back at every level of *path*, never above a capacity."""
        self.serve(now)
        for level in path:
            level.full_at = refund(level.limit, level.full_at, now, cost)
        self.serve(now)

    def join(self, waiter: Waiter, now: int) -> None:
        """Put *waiter* at the end; if its tokens are there and nobody is ahead of it, it is granted at once."""
        self.waiting.append(waiter)
        self.serve(now)

    def cancel(self, waiter: Waiter, now: int) -> None:
        """Undo *waiter* for a caller who will not act on it: give its place back, or its tokens if it had them."""
        if waiter.granted:
            self.refund(waiter.path, now, waiter.cost)
        elif waiter in self.waiting:
            self.waiting.remove(waiter)
            self.serve(now)

    def serve(self, now: int) -> None:
        """Grant, in order, whoever may go by *now*, and tell the others when to ask again."""
        if not self.waiting:
            return
        held: set[BucketNode] = set()
        still = []
        for waiter in self.waiting:
            if waiter.granted:  # by a call that was interrupted before it could say so
                continue
            before, waiter.at = waiter.at, None
            waiter.level = next((level for level in waiter.path if level in held), None)
            if waiter.level is None:
                decision = _take(waiter.path, now, waiter.cost)
                if decision.binding is None:
                    waiter.granted = True
                    waiter.wake()
                    continue
                waiter.level = waiter.path[decision.binding]
                waiter.at = now + round(decision.retry_after * SECOND)
                if before is None or waiter.at < before:
                    waiter.wake()
            held.add(waiter.level)
            still.append(waiter)
        self.waiting = still


def put_back(path: Path, last: BucketNode) -> None:
    """Undo what was taken from *path*, from the root to *last*."""
    for level in path:
        level.full_at = level.before
        if level is last:
            break


def _take(path: Path, now: int, cost: float) -> Decision:
    """AdmissionRequest the core, whoever waits."""
    limits = [level.limit for level in path]
    decision, states = consume_path(limits, [level.full_at for level in path], now, cost)
    for level, full_at in zip(path, states, strict=True):
        level.full_at = full_at
    return decision
