"""The places that a worker's hold_queues were promised by levels that hold. Pure."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable

from bucketflow.limit import SECOND
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.scheduling.admit import AdmissionDecision, AdmissionRequest

__all__ = ["ReservationPool"]

#: The patience of a task that is promised no place: it is parked instead.
NO_PLACE = -1


class ReservationPool:
    """
    ReservationPool in the hold_queues of ``all`` and of the queues, by key, in µs of the store's clock.

    Such a place belongs to the worker's line and not to a task: if its head turns out to wait for its tenant, is
    revoked, gives up or goes back to the broker, the next one uses it. At most a few a queue: whoever requests takes
    one.
    """

    def __init__(self) -> None:
        self._dues: dict[str, list[int]] = {}

    def question(self, task: PendingTask, waited: float) -> AdmissionRequest:
        """Return the question of *task*, which has waited so many seconds; it takes the first place of each line."""
        policy = task.policy
        if policy.parks:
            return AdmissionRequest(
                policy.path, policy.cost, (0,) * len(policy.path), NO_PLACE, task.queue, policy.tenant or ""
            )
        reservations = [
            task.reservations.get(level.key, 0) if (not level.blocks_queue) else self._take(level.key)
            for level in policy.path
        ]
        if policy.max_wait is None:
            return AdmissionRequest(policy.path, policy.cost, tuple(reservations))
        return AdmissionRequest(
            policy.path, policy.cost, tuple(reservations), max(0, round((policy.max_wait - waited) * SECOND))
        )

    def settle(self, task: PendingTask, decision: AdmissionDecision) -> None:
        """Keep the places of one who was not admitted: its own with *task*, the others here."""
        for level, due in zip(task.policy.path, decision.reservations, strict=True):
            if due and (not level.blocks_queue):
                task.reservations[level.key] = due
            elif due:
                insort(self._dues.setdefault(level.key, []), due)

    def restore(self, requests: Iterable[AdmissionRequest]) -> None:
        """Take back what questions took that were not answered."""
        for request in requests:
            for level, due in zip(request.path, request.reservations, strict=True):
                if due and level.blocks_queue:
                    insort(self._dues.setdefault(level.key, []), due)

    def _take(self, key: str) -> int:
        reservations = self._dues.get(key)
        return reservations.pop(0) if reservations else 0
