"""What the workers report, beside the throttle: which task they received, and when it started."""

from __future__ import annotations

from typing import Any

from redis import Redis

from bucketflow_celery.demo.ledger import Ledger
from bucketflow_celery.demo.place import Place

__all__ = ["Records"]


class Records:
    """
    Lists in Redis that the workers write and the demo reads.

    Args:
        place: Where.
    """

    def __init__(self, place: Place) -> None:
        self._client = Redis.from_url(place.url, decode_responses=True)
        names = ("starts", "deliveries", "ready")
        self._starts, self._deliveries, self._ready = (f"{place.prefix}{name}" for name in names)
        self._seen = [0, 0]

    def start(self, task_id: str, at: float) -> None:
        """Note that a task started, *at* in seconds of the monotonic clock."""
        self._client.rpush(self._starts, f"{task_id} {at!r}")

    def delivery(self, task_id: str) -> None:
        """Note that a worker received a task."""
        self._client.rpush(self._deliveries, task_id)

    def worker_ready(self) -> None:
        """Note that a worker is ready."""
        self._client.incr(self._ready)

    @property
    def workers(self) -> int:
        """How many workers are ready."""
        return int(self._client.get(self._ready) or 0)

    def read_into(self, ledger: Ledger) -> None:
        """Enter into *ledger* what is new of the tasks it has sent."""
        reading: Any = self._client.pipeline(transaction=False)
        reading.lrange(self._starts, self._seen[0], -1).lrange(self._deliveries, self._seen[1], -1)
        starts, deliveries = reading.execute()
        self._seen = [self._seen[0] + len(starts), self._seen[1] + len(deliveries)]
        for line in starts:
            task_id, at = line.split()
            if task_id in ledger.sent:
                ledger.starts.setdefault(task_id, []).append(float(at) - ledger.began)
        ledger.deliveries.update(task_id for task_id in deliveries if task_id in ledger.sent)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
