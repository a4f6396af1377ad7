"""The figures of a run: how each level kept its limit, how much of it was used, and which promises were broken."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from bucketflow.algorithm.window import Window, worst_window
from bucketflow_celery.config.levels import Level
from bucketflow_celery.config.limit import Limit
from bucketflow_celery.demo.limits import label
from bucketflow_celery.demo.run_log import RunLog

__all__ = ["START_DELAY", "Change", "LevelSummary", "Summary", "Usage", "summarise", "utilisation"]

#: Seconds after its sending from which a task counts as waiting. Before that it may still be in transit.
TRANSIT = 0.5

#: Seconds by which a busy machine may delay a start after its tokens were taken. A task records its start itself, once
#: its pool process runs. Starts that are recorded together may have been admitted that far apart.
START_DELAY = 0.25


@dataclass(frozen=True, slots=True)
class LevelSummary:
    """
    The figures of one level.

    Attributes:
        level: The level.
        tasks: The number of tasks sent that it limits.
        waited: Seconds in which tasks waited for this level and for no other.
        used: Share of its tokens that were used in that time, 0 to 1.
        worst: The window that came closest to the limit or exceeded it most; ``None`` if nothing started.
        deliveries: Deliveries per task.
    """

    level: Level
    tasks: int
    waited: float
    used: float
    worst: Window | None
    deliveries: float

    @property
    def exceeded(self) -> bool:
        """Whether a window exceeded the limit by more than one task and :data:`START_DELAY` together explain."""
        return self.worst is not None and self.worst.over > 1 + self.level.limit.fill_rate * START_DELAY


@dataclass(frozen=True, slots=True)
class Summary:
    """
    The figures of a run.

    Attributes:
        levels: The figures of each level, root first.
        sent: Tasks sent.
        seconds: From the first sending to the last start.
        lost: Tasks that never started.
        repeated: Tasks that started more than once.
    """

    levels: tuple[LevelSummary, ...]
    sent: int
    seconds: float
    lost: int
    repeated: int

    @property
    def broken(self) -> list[str]:
        """The broken promises, for display; empty if all were kept."""
        found = [f"{label(one.level)} exceeded its limit" for one in self.levels if one.exceeded]
        if self.lost:
            found.append(f"{self.lost} tasks were lost")
        if self.repeated:
            found.append(f"{self.repeated} tasks started more than once")
        return found


class Change(NamedTuple):
    """
    A change in what waits or has started on one path.

    Attributes:
        at: Its time, in seconds.
        path: The levels of the task, root first; length >= 1.
        cost: Tokens that the task takes.
        waiting: +1 if the task begins to wait, -1 if it ends waiting, 0 otherwise.
        started: Whether the task started.
    """

    at: float
    path: tuple[Level, ...]
    cost: float
    waiting: int
    started: bool


@dataclass(slots=True)
class Usage:
    """
    How the tokens of a level were used while it was the bottleneck.

    Attributes:
        seconds: How long tasks waited for this level and for no other.
        overflowing: Seconds of those in which its bucket was full, so that tokens were lost.
    """

    seconds: float = 0.0
    overflowing: float = 0.0

    @property
    def share(self) -> float:
        """The share of the tokens that were used, 0 to 1."""
        return 1.0 - self.overflowing / self.seconds if self.seconds else 1.0


def summarise(log: RunLog) -> Summary:
    """Return the figures of a run that has ended."""
    usages = utilisation(_changes(log))
    levels = tuple(_summary_of(log, level, usages) for level in log.levels)
    last = max((at for times in log.starts.values() for at in times), default=0.0)
    first = min((at for at, _ in log.sent.values()), default=0.0)
    return Summary(levels, len(log.sent), max(0.0, last - first), log.lost, log.repeated)


def _summary_of(log: RunLog, level: Level, usages: Mapping[str, Usage]) -> LevelSummary:
    usage = usages.get(level.key, Usage())
    worst = worst_window(level.limit, log.started(level))
    return LevelSummary(level, len(log.ids(level)), usage.seconds, usage.share, worst, log.deliveries_per_task(level))


def _changes(log: RunLog) -> Iterator[Change]:
    for task_id, (at, order) in log.sent.items():
        path = log.paths[order.tenant, order.task]
        times = log.starts.get(task_id, [])
        waits = not times or times[0] > at + TRANSIT
        if waits:
            yield Change(at + TRANSIT, path, order.cost, 1, started=False)
        for number, start in enumerate(times):
            yield Change(start, path, order.cost, -1 if waits and number == 0 else 0, started=True)


@dataclass(slots=True)
class _Bucket:
    limit: Limit
    full_at: float = -math.inf

    def ready_at(self, cost: float) -> float:
        return self.full_at - (self.limit.capacity - cost) / self.limit.fill_rate

    def take(self, now: float, cost: float) -> None:
        self.full_at = max(self.full_at, now) + cost / self.limit.fill_rate


def utilisation(changes: Iterable[Change]) -> Mapping[str, Usage]:
    """
    Replay a run and return, for each level, how its tokens were used while it was the bottleneck.

    A waiting task waits for the level of its path whose tokens arrive last, from the moment the other levels have
    theirs. Tokens that this level's bucket cannot hold in that time are lost: a task waited for them and did not start.

    Args:
        changes: In any order.

    Returns:
        The usage of every level on a path, by level key.
    """
    ordered = sorted(changes, key=lambda change: change.at)
    buckets = {level.key: _Bucket(level.limit) for change in ordered for level in change.path}
    usages = {key: Usage() for key in buckets}
    waiting: Counter[tuple[tuple[Level, ...], float]] = Counter()
    for index, change in enumerate(ordered):
        waiting[change.path, change.cost] += change.waiting
        if change.started:
            for level in change.path:
                buckets[level.key].take(change.at, change.cost)
        if index + 1 < len(ordered):
            _add_interval(usages, buckets, +waiting, change.at, ordered[index + 1].at)
    return usages


def _add_interval(
    usages: Mapping[str, Usage],
    buckets: Mapping[str, _Bucket],
    waiting: Iterable[tuple[tuple[Level, ...], float]],
    begin: float,
    end: float,
) -> None:
    """Add the time from *begin* to *end*, in which nothing changes, to the levels that tasks wait for."""
    bottleneck_from: dict[str, float] = {}
    for path, cost in waiting:
        *others, (last, key) = sorted((buckets[level.key].ready_at(cost), level.key) for level in path)
        if last > -math.inf:
            from_ = max([begin, *(ready_at for ready_at, _ in others)])
            bottleneck_from[key] = min(bottleneck_from.get(key, end), from_)
    for key, at in bottleneck_from.items():
        usages[key].seconds += end - at
        usages[key].overflowing += max(0.0, end - max(at, buckets[key].full_at))
