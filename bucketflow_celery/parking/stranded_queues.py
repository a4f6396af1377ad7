"""Warnings about queues with parked tasks that no live worker serves, one for the whole fleet in ten minutes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from bucketflow_celery.store.interfaces import BacklogStore

__all__ = ["StrandedQueues"]

logger = logging.getLogger("bucketflow_celery.parking")


class StrandedQueues:
    """
    Announces the queues that a worker serves, and warns of those that no worker does.

    Args:
        backlogs: The backlogs.

    Attributes:
        queues: Returns the queues of the worker, as long as it is connected to the broker.
    """

    def __init__(self, backlogs: BacklogStore) -> None:
        self._backlogs = backlogs
        self.queues: Callable[[], Sequence[str]] = tuple

    def check(self, worker: str) -> None:
        """Announce the queues of *worker*, and log the warnings that are due. Raises ``StoreUnavailable``."""
        for queue in self._backlogs.announce(worker, self.queues()).run():
            count = sum(lane.count for lane in self._backlogs.view(queue).lanes)
            logger.warning("queue %s: parked tasks wait that no live worker serves: tasks=%d", queue, count)

    def withdraw(self, worker: str) -> None:
        """Announce that *worker* ends. Raises ``StoreUnavailable``."""
        self._backlogs.announce(worker, ()).run()
