"""What a run has shown: the figures of each level, and whether a promise was broken. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bucketflow.algorithm.window import Window, worst_window
from bucketflow_celery.config.levels import Level
from bucketflow_celery.demo.ledger import Ledger
from bucketflow_celery.demo.limits import label
from bucketflow_celery.demo.utilisation import Change, Use, utilisation

__all__ = ["LATE", "Line", "Summary", "summarise"]

#: Seconds after its sending from which a task counts as waiting: until then it may be on its way.
WAY = 0.5

#: Seconds. A task notes its start itself, when its slot got round to it: so long after its tokens were taken, on a
#: busy machine. What started together may have been let in that much apart.
LATE = 0.25


@dataclass(frozen=True, slots=True)
class Line:
    """
    The figures of one level.

    Attributes:
        level: Which.
        tasks: How many were sent that pass it.
        waited: Seconds in which tasks waited for it and for no other level.
        used: Share of its tokens that were used meanwhile, 0 to 1.
        worst: The window that came closest to its limit; ``None`` if nothing started.
        deliveries: Per task.
    """

    level: Level
    tasks: int
    waited: float
    used: float
    worst: Window | None
    deliveries: float

    @property
    def over(self) -> bool:
        """Whether a window exceeded the limit by more than one task and what :data:`LATE` explains."""
        return self.worst is not None and self.worst.over > 1 + self.level.limit.fill_rate * LATE


@dataclass(frozen=True, slots=True)
class Summary:
    """
    The figures of a run.

    Attributes:
        lines: One a level, root first.
        sent: Tasks sent.
        seconds: From the first sending to the last start.
        lost: Tasks that never started.
        repeated: Tasks that started more than once.
    """

    lines: tuple[Line, ...]
    sent: int
    seconds: float
    lost: int
    repeated: int

    @property
    def broken(self) -> list[str]:
        """The promises that were broken, in words; empty if all were kept."""
        found = [f"{label(line.level)} exceeded its limit" for line in self.lines if line.over]
        if self.lost:
            found.append(f"{self.lost} tasks were lost")
        if self.repeated:
            found.append(f"{self.repeated} tasks started more than once")
        return found


def summarise(ledger: Ledger) -> Summary:
    """Return the figures of a run that has ended."""
    uses = utilisation(_changes(ledger))
    lines = tuple(_line(ledger, level, uses) for level in ledger.levels)
    last = max((at for times in ledger.starts.values() for at in times), default=0.0)
    first = min((at for at, _ in ledger.sent.values()), default=0.0)
    return Summary(lines, len(ledger.sent), max(0.0, last - first), ledger.lost, ledger.repeated)


def _line(ledger: Ledger, level: Level, uses: Mapping[str, Use]) -> Line:
    use = uses.get(level.key, Use())
    worst = worst_window(level.limit, ledger.started(level))
    return Line(level, len(ledger.ids(level)), use.seconds, use.share, worst, ledger.per_task(level))


def _changes(ledger: Ledger) -> Iterator[Change]:
    for task_id, (at, order) in ledger.sent.items():
        path = ledger.paths[order.tenant, order.task]
        times = ledger.starts.get(task_id, [])
        waits = not times or times[0] > at + WAY
        if waits:
            yield Change(at + WAY, path, order.cost, 1, started=False)
        for number, start in enumerate(times):
            yield Change(start, path, order.cost, -1 if waits and number == 0 else 0, started=True)
