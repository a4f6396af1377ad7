"""Cache of tenants with parked tasks: their new tasks are parked without asking the store."""

from __future__ import annotations

from collections import Counter
from math import inf

from bucketflow_celery.admission.pending_task import PendingTask

__all__ = ["MAX_TENANTS", "ParkedTenants"]

#: Seconds for which an entry is valid after the store has last confirmed it.
TTL = 1.0
#: Most entries.
MAX_TENANTS = 10_000


class ParkedTenants:
    """Tenants of each queue with parked tasks, as far as this worker knows: its own outbox, and the store's replies."""

    def __init__(self) -> None:
        self._being_parked: Counter[tuple[str, str | None]] = Counter()
        self._confirmed_at: dict[tuple[str, str | None], float] = {}

    def blocks(self, task: PendingTask, now: float) -> bool:
        """Return whether the tenant of *task* is known to have parked tasks at *now*."""
        key = task.queue, task.policy.tenant
        return key in self._being_parked or self._confirmed_at.get(key, -inf) > now - TTL

    def add(self, task: PendingTask) -> None:
        """Record that *task* is about to be parked."""
        self._being_parked[task.queue, task.policy.tenant] += 1

    def remove(self, task: PendingTask) -> None:
        """Undo :meth:`add`."""
        key = task.queue, task.policy.tenant
        self._being_parked[key] -= 1
        if not self._being_parked[key]:
            del self._being_parked[key]

    def confirm(self, queue: str, tenant: str, now: float) -> None:
        """Record that the store reported parked tasks of *tenant* at *now*; ``""``: tasks without a tenant."""
        if len(self._confirmed_at) >= MAX_TENANTS:
            self._confirmed_at.clear()
        self._confirmed_at[queue, tenant or None] = now
