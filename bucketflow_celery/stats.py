"""What a worker counts."""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["Stats"]


@dataclass(slots=True)
class Stats:
    """
    Counters of one worker since it started.

    Attributes:
        admitted: Tasks that started.
        refused: Tasks that were refused, each time a level refused them anew.
        held: Tasks that had to wait inside the worker.
        deferred: Tasks sent back to the broker, to come again.
        requeued: Deliveries left to the broker because they were held for too long.
        parked: Tasks stored in the backlog of their queue.
        dispatched: Tasks that were dispatched to this worker from a backlog.
        failed: Tasks given up: ``ThrottleTimeout``, ``CostExceedsCapacity``, a tenant or cost that cannot be told.
        round_trips: Calls to the store.
        store_errors: Calls that failed.
        waiting: Tasks that wait inside the worker now.
    """

    admitted: int = 0
    refused: int = 0
    held: int = 0
    deferred: int = 0
    requeued: int = 0
    parked: int = 0
    dispatched: int = 0
    failed: int = 0
    round_trips: int = 0
    store_errors: int = 0
    waiting: int = 0

    def snapshot(self) -> dict[str, int]:
        """Return the counters by name."""
        return asdict(self)
