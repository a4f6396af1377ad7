"""
Which queues the live workers dispatch parked tasks from, and which queues with parked tasks none of them serves.

``store/lua/announce_queues.lua`` mirrors this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from bucketflow.limit import SECOND

__all__ = ["CHECK_INTERVAL", "REPORT_INTERVAL", "STRANDED_GRACE", "ServedQueues"]

#: Least µs between two checks for queues that no worker serves, by all workers together.
CHECK_INTERVAL = 5 * SECOND
#: µs for which a queue must be without a worker: a worker that is replaced is back by then.
STRANDED_GRACE = 5 * SECOND
#: Least µs between two reports of one queue, by all workers together.
REPORT_INTERVAL = 600 * SECOND


class ServedQueues:
    """
    The queues that each worker serves.

    Attributes:
        by_worker: The queues of each worker, as it announced them last.
        stranded: Since when a queue with parked tasks has no live worker, and when it was reported last (0: never), in
            µs of the store's clock.
        checked_at: The µs of the latest check.
    """

    def __init__(self) -> None:
        self.by_worker: dict[str, tuple[str, ...]] = {}
        self.stranded: dict[str, tuple[int, int]] = {}
        self.checked_at = 0

    def serves(self, queue: str, is_live: Callable[[str], bool]) -> bool:
        """Return whether a worker serves *queue* for which *is_live* holds."""
        return any(queue in queues and is_live(worker) for worker, queues in self.by_worker.items())

    def announce(
        self, worker: str, queues: Sequence[str], parked: Iterable[str], is_live: Callable[[str], bool], now: int
    ) -> list[str]:
        """
        Record that *worker* serves *queues*, and check for stranded queues if that is due.

        Args:
            worker: Name of the worker.
            queues: Its queues; none if it ends.
            parked: All queues with parked tasks.
            is_live: Returns whether a worker has a lease that has not expired.
            now: µs of the store's clock.

        Returns:
            The queues to report, sorted.
        """
        self.by_worker[worker] = tuple(queues)
        if not queues:
            del self.by_worker[worker]
        if 0 <= now - self.checked_at < CHECK_INTERVAL:
            return []
        self.checked_at = now
        self.by_worker = {name: of_it for name, of_it in self.by_worker.items() if is_live(name)}
        served = {queue for of_it in self.by_worker.values() for queue in of_it}
        before, self.stranded = self.stranded, {}
        reported = []
        for queue in sorted(set(parked) - served, key=str.encode):
            since, reported_at = before.get(queue, (now, 0))
            since = min(since, now)
            if now - since >= STRANDED_GRACE and not 0 <= now - reported_at < REPORT_INTERVAL:
                reported_at = now
                reported.append(queue)
            self.stranded[queue] = since, reported_at
        return reported
