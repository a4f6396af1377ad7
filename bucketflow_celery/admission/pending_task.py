"""A received task that has neither started nor left the worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bucketflow_celery.config.levels import ThrottlePolicy

__all__ = ["PendingTask"]


@dataclass(slots=True, eq=False)
class PendingTask:
    """
    One delivery, and what admission knows of it.

    Attributes:
        request: Celery's request.
        queue: The queue it was delivered from.
        received_at: When this worker received it, in seconds of the monotonic clock.
        waiting_since: Since when it waits for its limits, in seconds since the Unix epoch; ``None``: it does not yet.
            Kept over all its deliveries.
        reservations: Its reservations at the levels of tenant and task, by key, in µs of the store's clock.
        policy: What limits it.
        redelivered: Whether it was delivered before; ``None``: the broker does not say.
        can_park: Whether its message can wait outside of its queue.
        retry_at: When to ask for it again, in seconds of the monotonic clock.
        is_held: Whether it stands in a hold queue.
    """

    request: Any
    queue: str
    received_at: float
    waiting_since: float | None = None
    reservations: dict[str, int] = field(default_factory=dict)
    policy: ThrottlePolicy = ThrottlePolicy(())  # noqa: RUF009 - frozen
    redelivered: bool | None = None
    can_park: bool = False
    retry_at: float = 0.0
    is_held: bool = False
