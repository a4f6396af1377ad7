"""Counters of a worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

__all__ = ["OTHER", "Stats", "no_waiting_tasks"]

#: The key of tasks that wait for something else than a level, such as the store or the end of a pause.
OTHER = "other"


def no_waiting_tasks() -> dict[str, int]:
    """Return the value of ``waiting_by_level`` where no task waits."""
    return dict.fromkeys(("all", "queue", "tenant", "task", OTHER), 0)


@dataclass(slots=True)
class Stats:
    """
    Counters of one worker since it started. Each component increments its own.

    Attributes:
        admitted: Tasks that were started.
        refused: Refusals. A held task that the same level refuses again is not counted again.
        held: Tasks that were held in the worker.
        deferred: Tasks that were republished with an ETA.
        requeued: Messages that were returned to the broker because they were held for ``max_hold``.
        parked: Tasks that were stored in the backlog of their queue.
        dispatched: Parked tasks that were dispatched to this worker.
        failed: Tasks that failed without running: ``ThrottleTimeout``, ``CostExceedsCapacity``, or a tenant or cost
            that cannot be determined.
        purged: Tasks that were ended by a purge while they waited in this worker or came back to it.
        round_trips: Calls to the store.
        store_errors: Calls to the store that failed.
        waiting: Tasks that wait in the worker now, for their limits or for a slot. A gauge, not a counter.
        waiting_by_level: Returns the tasks that wait in the worker now for their limits, held or deferred, by name of
            the level that they wait for: ``all``, ``queue``, ``tenant``, ``task``, or ``other``. Gauges.
    """

    admitted: int = 0
    refused: int = 0
    held: int = 0
    deferred: int = 0
    requeued: int = 0
    parked: int = 0
    dispatched: int = 0
    failed: int = 0
    purged: int = 0
    round_trips: int = 0
    store_errors: int = 0
    waiting: int = 0
    waiting_by_level: Callable[[], dict[str, int]] = no_waiting_tasks

    def snapshot(self) -> dict[str, Any]:
        """Return the values by name: numbers, and the mapping ``waiting_by_level``."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "waiting_by_level": self.waiting_by_level()}
