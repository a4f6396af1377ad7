"""A task that is pending in the worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bucketflow_celery.config.policy import ThrottlePolicy

__all__ = ["PendingTask"]


@dataclass(slots=True, eq=False)
class PendingTask:
    """
    One task at the gate.

    Attributes:
        request: Celery's request.
        queue: The queue it came from.
        policy: What it needs in order to start.
        arrived: When it came to this worker, in seconds of the monotonic clock.
        first_refused_at: When it was first refused anywhere, in seconds since the Unix epoch; ``None`` if it never was.
        reservations: The places it has in the hold_queues of levels that send tasks back, by key, in µs of the
            store's clock.
        retry_at: Not worth asking before, in seconds of the monotonic clock.
        is_held: Whether it stands in a line.
    """

    request: Any
    queue: str
    policy: ThrottlePolicy
    received_at: float
    first_refused_at: float | None = None
    reservations: dict[str, int] = field(default_factory=dict)
    retry_at: float = 0.0
    is_held: bool = False
