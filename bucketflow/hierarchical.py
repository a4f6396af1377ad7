"""Hierarchical token buckets: a call takes tokens at every level of its path, from the root down, or at none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING
from weakref import ref

from bucketflow.algorithm.gcra import Decision, initial_state, tokens_at
from bucketflow.algorithm.wait_tree import BucketNode, Path, roll_back
from bucketflow.clock import SYSTEM_CLOCK, fast_reader
from bucketflow.errors import ConfigError, CostExceedsCapacity
from bucketflow.hierarchy_config import parse_hierarchy
from bucketflow.limit import SECOND, Limit
from bucketflow.local.fast_path import DISABLED, popping
from bucketflow.local.locked_tree import LockedTree
from bucketflow.process_bound import USE_REDIS, ProcessBound
from bucketflow.validation import check_cost, check_timeout

if TYPE_CHECKING:
    from bucketflow.clock import Clock

__all__ = ["HierarchicalTokenBucket", "create_bucket_hierarchy"]


class HierarchicalTokenBucket(ProcessBound):
    """
    A token bucket that is the root of a tree of buckets, or the child of another bucket.

    A tree has one lock, and a call decides over its whole path in one step.

    Args:
        capacity: Most tokens the bucket holds: the burst. Above 0.
        fill_rate: Tokens per second. Above 0.
        parent: The bucket above, ``None`` for a root. A call takes tokens from it and its ancestors, too.
        initial_tokens: Tokens at the start, 0 to *capacity*; by default full.
        name: Name of the bucket in errors; by default its level, counted from 0 at the root.
        clock: Source of the time of the whole tree, for the root only. ``bucketflow.testing.FakeClock`` in tests.

    Raises:
        ConfigError: A number is invalid or out of range, *parent* is not a bucket, or a child was given a clock.
    """

    _instead = USE_REDIS

    def __init__(  # noqa: PLR0913 - the signature of 0.1.0, and a clock
        self,
        capacity: float,
        fill_rate: float,
        parent: HierarchicalTokenBucket | None = None,
        initial_tokens: float | None = None,
        name: str | None = None,
        *,
        clock: Clock | None = None,
    ) -> None:
        self._path: Path = ()
        self._tree = LockedTree(clock or SYSTEM_CLOCK)
        if parent is not None:
            if not isinstance(parent, HierarchicalTokenBucket):
                raise ConfigError("parent", parent, "a HierarchicalTokenBucket or None")
            if clock is not None:
                raise ConfigError("clock", clock, "None below the root: a tree has one clock")
            self._path, self._tree = parent._path, parent._tree  # noqa: SLF001 - the same class
        limit = Limit(capacity, fill_rate)
        full_at = initial_state(limit, initial_tokens, self._tree.clock.now())
        self._node = BucketNode(limit, full_at, name or f"level {len(self._path)}")
        self._path = (*self._path, self._node)
        self._narrowest = min(self._path, key=lambda node: node.limit.capacity)
        # What the fast path of consume needs, computed once, as in Bucket.
        slot = self._tree.state.slot
        unchecked: object = 1 if self._narrowest.limit.capacity >= 1 else object()
        self._fast_path = (unchecked, self._steps(1.0), popping(slot), slot, *fast_reader(self._tree.clock))
        self._name = name
        self._parent = parent
        # Weak references, in order: the bucket of a tenant that is gone must not stay in memory.
        self._children: dict[ref[HierarchicalTokenBucket], None] = {}
        if parent is not None:
            siblings = parent._children  # noqa: SLF001 - the same class
            siblings[ref(self, lambda dead: siblings.pop(dead, None))] = None

    @property
    def name(self) -> str | None:
        """Name of the bucket, as given."""
        return self._name

    @property
    def parent(self) -> HierarchicalTokenBucket | None:
        """The bucket above, ``None`` at the root."""
        return self._parent

    @property
    def children(self) -> list[HierarchicalTokenBucket]:
        """The buckets directly below that are still referenced, in order of creation."""
        return [child for child in (reference() for reference in list(self._children)) if child is not None]

    @property
    def limit(self) -> Limit:
        """Capacity and fill rate of this bucket alone."""
        return self._node.limit

    @property
    def capacity(self) -> float:
        """Most tokens this bucket holds."""
        return self._node.limit.capacity

    @property
    def fill_rate(self) -> float:
        """Tokens per second of this bucket."""
        return self._node.limit.fill_rate

    @property
    def tokens(self) -> float:
        """Tokens in this bucket now. Its ancestors may hold fewer."""
        with self._tree.lock, self._tree.state as tree:
            now = self._tree.clock.now()
            tree.grant_due(now)
            return tokens_at(self._node.limit, self._node.full_at, now)

    def consume(self, tokens: float = 1, block: bool = False, timeout: float | None = None) -> bool:  # noqa: FBT001, FBT002 - as in TokenBucket
        """
        Take *tokens* from this bucket and all its ancestors, or from none.

        Blocked callers sleep outside the lock. They are served in order of arrival, but a caller that waits at one
        level does not block calls that do not pass that level. A caller that is refused or interrupted spends nothing.

        Args:
            tokens: Tokens to take, >= 0; 0 takes none.
            block: Whether to wait for them.
            timeout: Most seconds to wait; ``None``: no limit. A caller whose expected wait is longer is refused at
                once.

        Returns:
            Whether the tokens were taken. Without *block* a cost above the capacity of a bucket of the path is
            refused too, as in 0.1.0.

        Raises:
            ConfigError: *tokens* or *timeout* is not a number of 0 or more, or *timeout* is given without *block*.
            CostExceedsCapacity: With *block*: *tokens* is above the capacity of a bucket of the path, so the call
                would wait for ever. The error names the bucket with the smallest capacity.
        """
        if timeout is not None:
            timeout = check_timeout(timeout, block=block)
        unchecked, steps, pop, slot, read, scale = self._fast_path
        if tokens is not unchecked:
            steps = self._checked_steps(tokens, block)
            if not steps:
                return False
            pop = pop if tokens else DISABLED
        # As in TokenBucket.consume, but the states stay in the nodes and are rolled back if one level refuses.
        try:
            for item in pop:
                last = None  # the last node to roll back
                try:
                    now = read() * scale + 2.0**52 - 2.0**52
                    for last, refill, tolerance in steps:
                        last.previous_full_at = full_at = last.full_at
                        deficit = full_at - now + refill if full_at > now else refill
                        if deficit > tolerance:
                            break
                        last.full_at = now + deficit
                    else:
                        last = None
                        return True
                    break
                finally:
                    try:
                        if last is not None:
                            roll_back(self._path, last)
                    finally:
                        slot.append(item)
        except IndexError:
            if self._consume(float(tokens)):
                return True
        return block and self._tree.wait(self._path, float(tokens), timeout)

    def try_consume(self, tokens: float = 1) -> Decision:
        """
        Take *tokens* without waiting, and return the decision with its details.

        Args:
            tokens: Tokens to take, >= 0; 0 takes none and reports the state.

        Returns:
            The decision over the path, root first. ``retry_after``, in seconds, includes callers that wait at a level
            of the path. It is exact if no caller comes or leaves, and none waits elsewhere in the tree.

        Raises:
            ConfigError: *tokens* is not a number of 0 or more.
            CostExceedsCapacity: *tokens* is above the capacity of a bucket of the path. The error names the bucket
                with the smallest capacity.
        """
        cost = self._cost(tokens)
        with self._tree.lock, self._tree.state as tree:
            return tree.try_consume(self._path, self._tree.clock.now(), cost)

    def wait_time(self, tokens: float = 1) -> float:
        """Return the ``retry_after`` of :meth:`try_consume` without taking tokens. Raises the same errors."""
        cost = self._cost(tokens)
        with self._tree.lock, self._tree.state as tree:
            return max(tree.waits(self._path, self._tree.clock.now(), cost)) / SECOND

    def refund(self, tokens: float = 1) -> None:
        """
        Return *tokens* to this bucket and all its ancestors, at most up to the capacity of each.

        Waiting callers move up. Raises the same errors as :meth:`try_consume`.
        """
        cost = self._cost(tokens)
        with self._tree.lock, self._tree.state as tree:
            tree.refund(self._path, self._tree.clock.now(), cost)

    def _cost(self, tokens: float) -> float:
        return check_cost(tokens, self._narrowest.limit.capacity, self._narrowest.label)

    def _steps(self, cost: float) -> list[tuple[BucketNode, float, float]]:
        """Return each node of the path, the µs in which *cost* tokens refill there, and its burst tolerance in µs."""
        return [(node, cost * SECOND / node.fill_rate, node.burst_tolerance) for node in self._path]

    def _checked_steps(self, tokens: float, block: bool) -> list[tuple[BucketNode, float, float]]:  # noqa: FBT001 - as in consume
        """Check *tokens* and return their steps: none if the path can never grant them to a non-blocking call."""
        try:
            return self._steps(self._cost(tokens))
        except CostExceedsCapacity:
            if block:
                raise
            return []

    def _consume(self, cost: float) -> bool:
        """Take *cost* tokens under the lock. Return whether they were there."""
        with self._tree.lock, self._tree.state as tree:
            return tree.try_consume(self._path, self._tree.clock.now(), cost).allowed


def create_bucket_hierarchy(
    config: Mapping[str, object], *, clock: Clock | None = None
) -> dict[str, HierarchicalTokenBucket]:
    """
    Create a tree of buckets from nested mappings.

    Args:
        config: The root, a mapping with ``name``, ``capacity`` and ``fill_rate``. Optional are ``initial_tokens`` and
            ``children``, a list of such mappings.
        clock: See :class:`HierarchicalTokenBucket`.

    Returns:
        The buckets by name, parents before their children.

    Raises:
        ConfigError: A key is missing or unknown, a name is used twice, or a value has the wrong type or range. The
            error names the entry by its path, as in ``config.children[1].fill_rate``.
    """
    buckets: dict[str, HierarchicalTokenBucket] = {}
    for spec in parse_hierarchy(config):
        parent = None if spec.parent is None else buckets[spec.parent]
        buckets[spec.name] = HierarchicalTokenBucket(
            spec.limit.capacity,
            spec.limit.fill_rate,
            parent,
            spec.initial_tokens,
            spec.name,
            clock=clock if parent is None else None,
        )
    return buckets
