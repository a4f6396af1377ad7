"""The levels at which tasks have reservations that a worker has deferred, for the day on which these are purged."""

from __future__ import annotations

from typing import NamedTuple

from bucketflow.limit import SECOND
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.config.levels import Level
from bucketflow_celery.scheduling.admit import AdmissionRequest
from bucketflow_celery.scheduling.purges import PurgeMarks

__all__ = ["DeferredLevels"]

#: Most levels that are remembered.
MAX_LEVELS = 10_000


class _Deferred(NamedTuple):
    """
    The deferred tasks of one level.

    Attributes:
        level: The level.
        scope: The queue, the tenant and the task type whose tasks pass it; ``None``: any task type.
        latest: Their latest reservation, in µs of the store's clock.
        purged_at: When such tasks were purged last before they were deferred.
    """

    level: Level
    scope: tuple[str, str | None, str | None]
    latest: int
    purged_at: int


class DeferredLevels:
    """
    Finds the reservations that no task will use after a purge, while the broker still has the copies of the tasks.

    These are all reservations of a tenant or a task type all of whose tasks were purged. A level that queues share has
    reservations of other tasks, too, and is left out.
    """

    def __init__(self) -> None:
        self._deferred: dict[str, _Deferred] = {}  # by key of the level

    def record(self, task: PendingTask) -> None:
        """Record that *task* was deferred."""
        policy = task.policy
        for level in policy.path:
            reservation = task.reservations.get(level.key, 0)
            if not reservation or level.blocks_queue or level.limit.shared:
                continue
            known = self._deferred.get(level.key)
            if known is None and len(self._deferred) >= MAX_LEVELS:
                self._deferred.clear()
            scope = task.queue, policy.tenant, policy.task if level.name == "task" else None
            latest = reservation if known is None else max(known.latest, reservation)
            self._deferred[level.key] = _Deferred(level, scope, latest, policy.purged_at)

    def take_purged(self, purges: PurgeMarks) -> list[AdmissionRequest]:
        """Return requests that cancel all reservations of the levels that *purges* have emptied, and forget these."""
        emptied = [one for one in self._deferred.values() if purges.purged_at(*one.scope) > one.purged_at]
        for one in emptied:
            del self._deferred[one.level.key]
        return [
            AdmissionRequest((one.level,), one.latest / SECOND * one.level.limit.fill_rate, (one.latest,))
            for one in emptied
        ]
