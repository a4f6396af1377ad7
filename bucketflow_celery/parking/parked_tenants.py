"""Which tenants are known to have tasks parked, so that another one of theirs need not ask. Pure."""

from __future__ import annotations

from collections import Counter
from math import inf

from bucketflow_celery.admission.pending_task import Entry

__all__ = ["REMEMBERED", "Blocking"]

#: Seconds for which a tenant is taken to have a backlog since the store last said so, and most tenants remembered.
FRESH, REMEMBERED = 1.0, 10_000


class Blocking:
    """The tenants of each queue, by what this worker is about to park and by what the store has said."""

    def __init__(self) -> None:
        self._on_the_way: Counter[tuple[str, str | None]] = Counter()
        self._blocked: dict[tuple[str, str | None], float] = {}

    def blocks(self, entry: Entry, now: float) -> bool:
        """Return whether the tenant of *entry* is known to have tasks parked at *now*."""
        key = entry.queue, entry.passage.tenant
        return key in self._on_the_way or self._blocked.get(key, -inf) > now - FRESH

    def add(self, entry: Entry) -> None:
        """Take note that *entry* is about to be parked."""
        self._on_the_way[entry.queue, entry.passage.tenant] += 1

    def remove(self, entry: Entry) -> None:
        """Take note that *entry* is not about to be parked any more."""
        key = entry.queue, entry.passage.tenant
        self._on_the_way[key] -= 1
        if not self._on_the_way[key]:
            del self._on_the_way[key]

    def remember(self, queue: str, tenant: str, now: float) -> None:
        """Take note that the store has said at *now* that *tenant* has tasks parked; ``""``: those without one."""
        if len(self._blocked) >= REMEMBERED:
            self._blocked.clear()
        self._blocked[queue, tenant or None] = now
