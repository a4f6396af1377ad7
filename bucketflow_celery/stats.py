"""Counters of a worker."""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["Stats"]


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
        round_trips: Calls to the store.
        store_errors: Calls to the store that failed.
        waiting: Tasks that wait in the worker now. A gauge, not a counter.
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
        """Return the values by name."""
        return asdict(self)
