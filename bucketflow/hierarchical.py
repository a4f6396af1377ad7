"""Buckets below buckets: a call passes the whole path from the root to its leaf, or spends nothing anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from bucketflow.algorithm.gcra import Decision, initial_state, tokens_at
from bucketflow.algorithm.wait_tree import BucketNode, Path, put_back
from bucketflow.clock import SYSTEM_CLOCK, fast_reader
from bucketflow.errors import ConfigError, CostExceedsCapacity
from bucketflow.hierarchy_config import parse_hierarchy
from bucketflow.limit import SECOND, Limit
from bucketflow.local.fast_path import DISABLED, popping
from bucketflow.local.locked_tree import LockedTree
from bucketflow.validation import check_cost, check_timeout

if TYPE_CHECKING:
    from bucketflow.clock import Clock

__all__ = ["HierarchicalTokenBucket", "create_bucket_hierarchy"]


class HierarchicalTokenBucket:
    """
    A token bucket below another one, or the root of a tree of them. One lock a tree, one step a path.

    Args:
        capacity: Most tokens it holds: the burst.
        fill_rate: Tokens per second.
        parent: The bucket above; every call must pass that one, and those above it, too.
        initial_tokens: Tokens at the start, 0 to *capacity*; by default full.
        name: What errors call it; by default its level, counted from the root at 0.
        clock: Of the whole tree: only the root takes one. ``bucketflow.testing.FakeClock`` in tests.

    Raises:
        ConfigError: A number is not one, or out of its range; *parent* is no bucket, or a child was given a clock.
    """

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
            self._path, self._tree = parent._path, parent._tree  # noqa: SLF001 - its own kind
        limit = Limit(capacity, fill_rate)
        full_at = initial_state(limit, initial_tokens, self._tree.clock.now())
        self._own = BucketNode(limit, full_at, name or f"level {len(self._path)}")
        self._path = (*self._path, self._own)
        self._narrowest = min(self._path, key=lambda level: level.limit.capacity)
        # What the quick way of consume needs, worked out once, as in Bucket.
        slot = self._tree.tree.slot
        one: object = 1 if self._narrowest.limit.capacity >= 1 else object()
        self._fast_path = (one, self._steps_of(1.0), popping(slot), slot, *fast_reader(self._tree.clock))
        self._name = name
        self._parent = parent
        self._children: list[HierarchicalTokenBucket] = []
        if parent is not None:
            parent._children.append(self)  # noqa: SLF001 - its own kind

    @property
    def name(self) -> str | None:
        """The name, as given."""
        return self._name

    @property
    def parent(self) -> HierarchicalTokenBucket | None:
        """The bucket above, ``None`` at the root."""
        return self._parent

    @property
    def children(self) -> list[HierarchicalTokenBucket]:
        """The buckets right below, in the order in which they were made."""
        return list(self._children)

    @property
    def limit(self) -> Limit:
        """Capacity and fill rate of this bucket alone."""
        return self._own.limit

    @property
    def capacity(self) -> float:
        """Most tokens this bucket holds."""
        return self._own.limit.capacity

    @property
    def fill_rate(self) -> float:
        """Tokens per second of this bucket."""
        return self._own.limit.fill_rate

    @property
    def tokens(self) -> float:
        """Tokens in this bucket now; those above it may hold fewer."""
        with self._tree.lock, self._tree.slow_path as tree:
            now = self._tree.clock.now()
            tree.serve(now)
            return tokens_at(self._own.limit, self._own.full_at, now)

    def consume(self, tokens: float = 1, block: bool = False, timeout: float | None = None) -> bool:  # noqa: FBT001, FBT002 - as in TokenBucket
        """
        Take *tokens* from this bucket and from every one above it, or from none.

        Blocked callers sleep outside the lock. They are served in the order in which they came, except that one who
        waits for a level holds up nobody who does not pass that level. Whoever is refused or interrupted has spent
        nothing.

        Args:
            tokens: How many; 0 only looks.
            block: Whether to wait for them.
            timeout: Seconds to wait at most; ``None``: as long as it takes. Whoever would wait longer, as far as can
                be known ahead, is refused at once.

        Returns:
            Whether the tokens were taken. Without *block* that is False for more *tokens* than a bucket of the path
            can hold, as in 0.1.0.

        Raises:
            ConfigError: *tokens* or *timeout* is no number of 0 or more, or *timeout* is given without *block*.
            CostExceedsCapacity: With *block*: *tokens* is above the capacity of a bucket of the path, so the call
                would wait for ever. The error names the bucket with the smallest capacity.
        """
        if timeout is not None:
            check_timeout(timeout, block=block)
        one, steps, take, slot, read, scale = self._fast_path
        if tokens is not one:
            steps = self._steps_for_call(tokens, block)
            if not steps:
                return False
            take = take if tokens else DISABLED
        # As in TokenBucket.consume, but the states stay in the levels, and get back what was taken if one refuses.
        try:
            for item in take:
                reached = None  # the last level that must get its tokens back
                try:
                    now = read() * scale + 2.0**52 - 2.0**52
                    for reached, step, most in steps:
                        reached.before = full_at = reached.full_at
                        behind = full_at - now + step if full_at > now else step
                        if behind > most:
                            break
                        reached.full_at = now + behind
                    else:
                        reached = None
                        return True
                    break
                finally:
                    try:
                        if reached is not None:
                            put_back(self._path, reached)
                    finally:
                        slot.append(item)
        except IndexError:
            if self._consume(tokens):
                return True
        return block and self._tree.wait(self._path, tokens, timeout)

    def try_consume(self, tokens: float = 1) -> Decision:
        """
        Take *tokens* now or not at all, and say what there was to say.

        Returns:
            The decision over the path, root first. ``retry_after``, in seconds, counts those who wait at a level of
            the path; it is exact if nobody comes or leaves, and nobody waits elsewhere in the tree.

        Raises:
            ConfigError: *tokens* is no number of 0 or more.
            CostExceedsCapacity: More than a bucket on the path can ever hold; it names the one that holds least.
        """
        cost = self._cost(tokens)
        with self._tree.lock, self._tree.slow_path as tree:
            return tree.decide(self._path, self._tree.clock.now(), cost)

    def wait_time(self, tokens: float = 1) -> float:
        """Return the ``retry_after`` that :meth:`try_consume` would give, popping nothing. Raises the same."""
        cost = self._cost(tokens)
        with self._tree.lock, self._tree.slow_path as tree:
            return max(tree.waits(self._path, self._tree.clock.now(), cost)) / SECOND

    def refund(self, tokens: float = 1) -> None:
        """
        Give *tokens* back to this bucket and to every one above it, each at most to its capacity.

        Those who wait move up. Raises as :meth:`try_consume` does.
        """
        cost = self._cost(tokens)
        with self._tree.lock, self._tree.slow_path as tree:
            tree.refund(self._path, self._tree.clock.now(), cost)

    def _cost(self, tokens: float) -> float:
        return check_cost(tokens, self._narrowest.limit.capacity, self._narrowest.label)

    def _steps_of(self, cost: float) -> list[tuple[BucketNode, float, float]]:
        """Return each level of the path, the µs in which *cost* tokens come there, and the most it may be behind."""
        return [(level, cost * SECOND / level.fill_rate, level.most) for level in self._path]

    def _steps_for_call(self, tokens: float, block: bool) -> list[tuple[BucketNode, float, float]]:  # noqa: FBT001 - as in consume
        """Check *tokens* and return their steps: none if the path can never grant them to a non-blocking call."""
        try:
            cost = check_cost(tokens, self._narrowest.limit.capacity, self._narrowest.label)
        except CostExceedsCapacity:
            if block:
                raise
            return []
        return self._steps_of(cost)

    def _consume(self, cost: float) -> bool:
        """Take *cost* tokens, or say that they are not there, when the quick way was closed."""
        with self._tree.lock, self._tree.slow_path as tree:
            return tree.decide(self._path, self._tree.clock.now(), cost).allowed


def create_bucket_hierarchy(
    config: Mapping[str, object], *, clock: Clock | None = None
) -> dict[str, HierarchicalTokenBucket]:
    """
    Make a tree of buckets from nested mappings.

    Args:
        config: The root: ``name``, ``capacity`` and ``fill_rate``; if wanted ``initial_tokens`` and ``children``, a
            list of the same.
        clock: See :class:`HierarchicalTokenBucket`.

    Returns:
        Every bucket by its name, parents before their children.

    Raises:
        ConfigError: A key is missing or unknown, a name is there twice, a value is of a wrong type or out of its
            range. It names the entry by its path, as in ``config.children[1].fill_rate``.
    """
    buckets: dict[str, HierarchicalTokenBucket] = {}
    for one in parse_hierarchy(config):
        parent = None if one.parent is None else buckets[one.parent]
        buckets[one.name] = HierarchicalTokenBucket(
            one.limit.capacity,
            one.limit.fill_rate,
            parent,
            one.initial_tokens,
            one.name,
            clock=clock if parent is None else None,
        )
    return buckets
