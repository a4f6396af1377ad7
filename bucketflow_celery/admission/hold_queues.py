"""The tasks that wait inside a worker, one line a bucket. Pure bookkeeping: no clock, no Celery."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterator
from math import inf

from bucketflow_celery.admission.pending_task import Entry
from bucketflow_celery.config.levels import Level
from bucketflow_celery.scheduling.admit import Ask

__all__ = ["Line", "Lines"]


class Line:
    """
    Those who wait for one bucket.

    Args:
        level: The level that binds; ``None`` for those who wait for the store to come back.
    """

    def __init__(self, level: Level | None) -> None:
        self.level = level
        self.entries: deque[Entry] = deque()

    @property
    def sorted(self) -> bool:
        """Whether each entry has a place of its own; else the line has places, and whoever is its head uses them."""
        return self.level is not None and self.level.returns

    @property
    def ready_at(self) -> float:
        """When its head may ask."""
        return self.entries[0].ready_at if self.entries else inf

    def add(self, entry: Entry) -> None:
        """Join at the end, or at one's place."""
        if self.level is not None and self.sorted:
            # By place, not by when they may ask: of many who are due and find no tokens only the first asks again.
            key = self.level.key
            insort(self.entries, entry, key=lambda other: other.dues.get(key, 0))
        else:
            self.entries.append(entry)

    def put_back(self, entries: list[Entry]) -> None:
        """Return *entries*, in their order, to the front they were taken from."""
        if self.sorted:
            for entry in entries:
                self.add(entry)
        else:
            self.entries.extendleft(reversed(entries))

    def take_ready(self, now: float, most: int) -> list[Entry]:
        """
        Take up to *most* entries that may ask.

        Behind the head come as many as tokens may have come for, and one more: its refusal tells when to ask again.
        """
        if self.level is not None and self.entries:
            late = max(0.0, now - self.entries[0].ready_at)
            most = int(min(most, 2 + late * self.level.limit.fill_rate / max(self.entries[0].passage.cost, 1e-9)))
        taken: list[Entry] = []
        while self.entries and len(taken) < most and self.entries[0].ready_at <= now:
            taken.append(self.entries.popleft())
        return taken

    def wait_ahead(self, now: float) -> float:
        """Return the least seconds that who joins now will wait, as far as this worker can tell."""
        if self.level is None or not self.entries:
            return 0.0
        tokens = sum(entry.passage.cost for entry in self.entries)
        return max(0.0, self.ready_at - now) + (tokens - self.entries[0].passage.cost) / self.level.limit.fill_rate


class Lines:
    """All lines of a worker, by key of the bucket that binds."""

    def __init__(self) -> None:
        self._lines: dict[str, Line] = {}

    def __len__(self) -> int:
        return sum(len(line.entries) for line in self._lines.values())

    def __iter__(self) -> Iterator[Entry]:
        for line in self._lines.values():
            yield from line.entries

    def of(self, key: str, level: Level | None) -> Line:
        """Return the line at *key*, a new one if need be."""
        return self._lines.setdefault(key, Line(level))

    def blocking(self, path: tuple[Level, ...]) -> Line | None:
        """Return the line that a newcomer on *path* must join: the first of ``all`` and its queue that has one."""
        for level in path:
            line = None if level.returns else self._lines.get(level.key)
            if line is not None and line.entries:
                return line
        return None

    def ready(self, now: float) -> list[Line]:
        """Return the lines whose head may ask."""
        return [line for line in self._lines.values() if line.ready_at <= now]

    def next_ready_at(self) -> float:
        """Return when the first head may ask; infinity if nobody waits."""
        return min((line.ready_at for line in self._lines.values()), default=inf)

    def remove(self, gone: set[Entry]) -> None:
        """Take *gone* out of whatever line they are in."""
        for line in self._lines.values():
            if any(entry in gone for entry in line.entries):
                line.entries = deque(entry for entry in line.entries if entry not in gone)

    def wake(self, ask: Ask) -> None:
        """Let the heads of the lines that *ask* had a place in ask at once: it goes away and leaves them the place."""
        for level, due in zip(ask.path, ask.dues, strict=True):
            line = self._lines.get(level.key) if due and not level.returns else None
            if line is not None and line.entries:
                line.entries[0].ready_at = 0.0

    def prune(self) -> None:
        """Forget lines that are empty."""
        self._lines = {key: line for key, line in self._lines.items() if line.entries}

    def clear(self) -> list[Entry]:
        """Empty every line and return who stood there."""
        entries = list(self)
        self._lines.clear()
        return entries
