"""How much of its limit each level used while work waited for it. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from bucketflow_celery.config.levels import Level
from bucketflow_celery.config.limit import Limit

__all__ = ["Change", "Use", "utilisation"]


class Change(NamedTuple):
    """
    Something that happened to the tasks of one path.

    Attributes:
        at: When, in seconds.
        path: The levels of the task, root first.
        cost: Tokens it takes.
        waiting: +1: it began to wait; -1: it waits no more; 0: it never waited.
        started: Whether it started.
    """

    at: float
    path: tuple[Level, ...]
    cost: float
    waiting: int
    started: bool


@dataclass(slots=True)
class Use:
    """
    What became of a level's tokens.

    Attributes:
        seconds: How long tasks waited for this level and for no other.
        spilled: Seconds of those in which its bucket was full, so that tokens were lost.
    """

    seconds: float = 0.0
    spilled: float = 0.0

    @property
    def share(self) -> float:
        """The share of the tokens that came meanwhile and were used: 0 to 1."""
        return 1.0 - self.spilled / self.seconds if self.seconds else 1.0


@dataclass(slots=True)
class _Bucket:
    limit: Limit
    full_at: float = -math.inf

    def ready_at(self, cost: float) -> float:
        return self.full_at - (self.limit.capacity - cost) / self.limit.fill_rate

    def take(self, now: float, cost: float) -> None:
        self.full_at = max(self.full_at, now) + cost / self.limit.fill_rate


def utilisation(changes: Iterable[Change]) -> Mapping[str, Use]:
    """
    Replay a run and tell, for each level, what it used of its limit while it was the bottleneck.

    A waiting task waits for that level of its path whose tokens come last, from the moment the others have theirs. What
    its bucket cannot hold meanwhile is lost: work was there, tokens were there, and nothing started.

    Args:
        changes: In any order.

    Returns:
        By the level's key, for every level on a path.
    """
    ordered = sorted(changes, key=lambda change: change.at)
    buckets = {level.key: _Bucket(level.limit) for change in ordered for level in change.path}
    uses = {key: Use() for key in buckets}
    waiting: Counter[tuple[tuple[Level, ...], float]] = Counter()
    for index, change in enumerate(ordered):
        waiting[change.path, change.cost] += change.waiting
        if change.started:
            for level in change.path:
                buckets[level.key].take(change.at, change.cost)
        if index + 1 < len(ordered):
            _count(uses, buckets, +waiting, change.at, ordered[index + 1].at)
    return uses


def _count(
    uses: Mapping[str, Use],
    buckets: Mapping[str, _Bucket],
    waiting: Iterable[tuple[tuple[Level, ...], float]],
    begin: float,
    end: float,
) -> None:
    since: dict[str, float] = {}
    for path, cost in waiting:
        *others, (last, key) = sorted((buckets[level.key].ready_at(cost), level.key) for level in path)
        if last > -math.inf:
            since[key] = min(since.get(key, end), max([begin, *(ready_at for ready_at, _ in others)]))
    for key, at in since.items():
        uses[key].seconds += end - at
        uses[key].spilled += max(0.0, end - max(at, buckets[key].full_at))
