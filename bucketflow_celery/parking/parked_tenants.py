"""Which tenants are known to have tasks parked, so that another one of theirs need not ask. Pure."""

from __future__ import annotations

from collections import Counter
from math import inf

from bucketflow_celery.admission.pending_task import PendingTask

__all__ = ["MAX_TENANTS", "ParkedTenants"]

#: Seconds for which a tenant is taken to have a backlog since the store last said so, and most tenants remembered.
FRESH, MAX_TENANTS = 1.0, 10_000


class ParkedTenants:
    """The tenants of each queue, by what this worker is about to park and by what the store has said."""

    def __init__(self) -> None:
        self._on_the_way: Counter[tuple[str, str | None]] = Counter()
        self._blocked: dict[tuple[str, str | None], float] = {}

    def blocks(self, task: PendingTask, now: float) -> bool:
        """Return whether the tenant of *task* is known to have tasks parked at *now*."""
        key = task.queue, task.policy.tenant
        return key in self._on_the_way or self._blocked.get(key, -inf) > now - FRESH

    def add(self, task: PendingTask) -> None:
        """Take note that *task* is about to be parked."""
        self._on_the_way[task.queue, task.policy.tenant] += 1

    def remove(self, task: PendingTask) -> None:
        """Take note that *task* is not about to be parked any more."""
        key = task.queue, task.policy.tenant
        self._on_the_way[key] -= 1
        if not self._on_the_way[key]:
            del self._on_the_way[key]

    def remember(self, queue: str, tenant: str, now: float) -> None:
        """Take note that the store has said at *now* that *tenant* has tasks parked; ``""``: those without one."""
        if len(self._blocked) >= MAX_TENANTS:
            self._blocked.clear()
        self._blocked[queue, tenant or None] = now
