"""
FIFO wait queue of a tree of buckets.

A waiter waits at its binding level: the level of its path with the longest wait, or one where another waiter is ahead.
Later callers do not overtake it there. Calls that do not pass that level go on.

So a caller that waits for its own bucket does not block sibling buckets. A caller that needs many tokens of the root is
not starved by callers that need few.

Unlike in :mod:`bucketflow.algorithm.wait_queue`, a grant time is only an estimate, because sibling calls may take
tokens of a common ancestor first. A waiter therefore retries at its ``retry_at``.
"""

from __future__ import annotations

from collections.abc import Callable

from bucketflow.algorithm.gcra import FULL, Decision, burst_tolerance, consume_path, refund, take, tokens_at, wait_for
from bucketflow.limit import SECOND, Limit

__all__ = ["BucketNode", "Path", "WaitTree", "Waiter", "roll_back"]


class BucketNode:
    """
    State of one bucket of a tree.

    Args:
        limit: Of this bucket alone.
        full_at: The bucket at the start, in µs.
        label: Name of the bucket in errors.

    Attributes:
        fill_rate: Tokens per second, as in *limit*; the fast path reads it here in one step.
        previous_full_at: ``full_at`` before the last fast-path call that took tokens here, for :func:`roll_back`.
        burst_tolerance: See :func:`bucketflow.algorithm.gcra.burst_tolerance`, in µs.
    """

    __slots__ = ("burst_tolerance", "fill_rate", "full_at", "label", "limit", "previous_full_at")

    def __init__(self, limit: Limit, full_at: float, label: str) -> None:
        self.limit = limit
        self.full_at = full_at
        self.label = label
        self.previous_full_at = full_at
        self.fill_rate = limit.fill_rate
        self.burst_tolerance = burst_tolerance(limit)


#: The buckets that one call passes: length = depth >= 1, root first.
Path = tuple[BucketNode, ...]


class Waiter:
    """
    A caller that waits for *cost* tokens at every level of *path*.

    Args:
        path: Length = depth >= 1, root first.
        cost: Tokens, >= 0.
        wake: Called under the adapter's lock when the waiter was granted, or may retry earlier. Must not block.

    Attributes:
        retry_at: µs at which to retry; ``None`` while another waiter is ahead at the same level.
        binding: The level at which it waits.
        granted: Whether the tokens were taken.
    """

    __slots__ = ("binding", "cost", "granted", "path", "retry_at", "wake")

    def __init__(self, path: Path, cost: float, wake: Callable[[], object]) -> None:
        self.path = path
        self.cost = cost
        self.wake = wake
        self.retry_at: int | None = None
        self.binding: BucketNode | None = None
        self.granted = False


class WaitTree:
    """
    The waiters of one tree. The states of the buckets are in their nodes.

    Attributes:
        waiters: In order of arrival.
        full_at: Always that of a full bucket. The fast path exchanges it where a single bucket has its state.
    """

    __slots__ = ("full_at", "waiters")

    def __init__(self) -> None:
        self.waiters: list[Waiter] = []
        self.full_at = FULL

    def try_consume(self, path: Path, now: int, cost: float) -> Decision:
        """
        Take *cost* tokens from every level of *path*, or from none. Do not overtake a waiter at a level of *path*.

        Returns:
            The decision. Its ``retry_after`` includes the waiters at levels of *path*. A cost of 0 overtakes no waiter.
        """
        self.grant_due(now)
        if not cost or all(waiter.binding not in path for waiter in self.waiters):
            return _consume_path(path, now, cost)
        waits = self.waits(path, now, cost)
        left = tuple(tokens_at(node.limit, node.full_at, now) for node in path)
        return Decision(allowed=False, retry_after=max(waits) / SECOND, binding=waits.index(max(waits)), tokens=left)

    def waits(self, path: Path, now: int, cost: float) -> list[int]:
        """
        Return the µs until each level has *cost* tokens, after the waiters at levels of *path* are granted.

        Returns:
            Same length and order as *path*. The longest is exact if no caller comes or leaves, and no caller waits
            elsewhere in the tree.
        """
        self.grant_due(now)
        ahead = [waiter for waiter in self.waiters if waiter.binding in path] if cost else []
        waits = []
        for node in path:
            full_at = node.full_at
            for waiter in ahead:
                if node in waiter.path:
                    full_at = take(node.limit, full_at, now, waiter.cost)
            waits.append(wait_for(node.limit, full_at, now, cost))
        return waits

    def refund(self, path: Path, now: int, cost: float) -> None:
        """Add *cost* tokens at every level of *path*, at most up to its capacity."""
        self.grant_due(now)
        for node in path:
            node.full_at = refund(node.limit, node.full_at, now, cost)
        self.grant_due(now)

    def join(self, waiter: Waiter, now: int) -> None:
        """Append *waiter*. Grant it at once if its tokens are there and no waiter is ahead of it."""
        self.waiters.append(waiter)
        self.grant_due(now)

    def cancel(self, waiter: Waiter, now: int) -> None:
        """Remove *waiter*, whose caller will not act on it. If it was granted, refund its tokens."""
        if waiter.granted:
            self.refund(waiter.path, now, waiter.cost)
        elif waiter in self.waiters:
            self.waiters.remove(waiter)
            self.grant_due(now)

    def grant_due(self, now: int) -> None:
        """Grant, in order, all waiters that can be granted by *now*. Set ``retry_at`` of the others."""
        if not self.waiters:
            return
        blocked: set[BucketNode] = set()
        remaining = []
        for waiter in self.waiters:
            if waiter.granted:  # by a call that was interrupted before it removed the waiter
                continue
            previous, waiter.retry_at = waiter.retry_at, None
            waiter.binding = next((node for node in waiter.path if node in blocked), None)
            if waiter.binding is None:
                decision = _consume_path(waiter.path, now, waiter.cost)
                if decision.binding is None:
                    waiter.granted = True
                    waiter.wake()
                    continue
                waiter.binding = waiter.path[decision.binding]
                waiter.retry_at = now + round(decision.retry_after * SECOND)
                if previous is None or waiter.retry_at < previous:
                    waiter.wake()
            blocked.add(waiter.binding)
            remaining.append(waiter)
        self.waiters = remaining


def roll_back(path: Path, last: BucketNode) -> None:
    """Restore the states of *path*, from the root to *last*, as they were before the fast-path call in progress."""
    for node in path:
        node.full_at = node.previous_full_at
        if node is last:
            break


def _consume_path(path: Path, now: int, cost: float) -> Decision:
    """Take *cost* tokens from every level of *path*, or from none, regardless of waiters."""
    limits = [node.limit for node in path]
    decision, states = consume_path(limits, [node.full_at for node in path], now, cost)
    for node, full_at in zip(path, states, strict=True):
        node.full_at = full_at
    return decision
