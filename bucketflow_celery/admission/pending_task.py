"""A received task that has neither started nor left the worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Any

from bucketflow_celery.admission.local_limits import is_local
from bucketflow_celery.config.levels import ThrottlePolicy
from bucketflow_celery.scheduling.admit import WAIVER
from bucketflow_celery.scheduling.ticket import Ticket

__all__ = ["PendingTask"]

#: Seconds after its expiry at which a task that could not start in time returns: then no worker's clock is before it.
EXPIRY_MARGIN = 1.0


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
        has_returned: Whether it came with a ticket: until its ETA it stood in this worker already.
        due_since: Since when it is due and waits for a slot, in seconds since the Unix epoch; ``None``: it has waited
            for one in this worker only.
        returned_at: When it was put at the end of its queue, in seconds since the Unix epoch; ``None``: it was not.
        returns_at: When it goes back to the broker, in seconds of the monotonic clock; ``None``: it does not.
        expires_at: When it expires, in seconds since the Unix epoch; ``None``: never.
        retry_at: When to ask for it again, in seconds of the monotonic clock.
        is_held: Whether it stands in a hold queue.
        seen_at: When a worker received it first, in µs of the store's clock; ``None``: this one has, at *received_at*.
        rank: Its rank by priority. The lowest starts first.
        places: By key, the reservations that it had before it gave way to a more urgent task of this worker.
    """

    request: Any
    queue: str
    received_at: float
    waiting_since: float | None = None
    reservations: dict[str, int] = field(default_factory=dict)
    policy: ThrottlePolicy = ThrottlePolicy(())  # noqa: RUF009 - frozen
    redelivered: bool | None = None
    can_park: bool = False
    has_returned: bool = False
    due_since: float | None = None
    returned_at: float | None = None
    returns_at: float | None = None
    expires_at: float | None = None
    retry_at: float = 0.0
    is_held: bool = False
    seen_at: int | None = None
    rank: int = 0
    places: dict[str, int] = field(default_factory=dict)

    @property
    def can_go_elsewhere(self) -> bool:
        """Whether another worker may start it in its turn: it has reservations, and may leave this worker."""
        return bool(self.reservations) and self.policy.on_limit == "retry"

    def precedence(self, key: str) -> tuple[int, int]:
        """Return the rank and the place by which tasks at the level *key* are to start, the lowest first."""
        return self.rank, self.places.get(key, self.reservations.get(key, 0))

    def take_reservation_of(self, other: PendingTask, key: str) -> None:
        """Exchange reservations with *other*, which has the earlier one at the level *key*, and is due."""
        other.places.setdefault(key, other.reservations[key])
        mine, theirs = self.reservations, other.reservations
        later, start = mine[key], other.retry_at
        # At further levels neither is to come later than at this one. This worker's own levels have another clock.
        self.reservations = mine | {
            name: min(at, theirs.get(name, theirs[key] - WAIVER))
            for name, at in mine.items()
            if is_local(name) == is_local(key)
        }
        other.reservations = theirs | {
            name: max(at, mine.get(name, later - WAIVER))
            for name, at in theirs.items()
            if is_local(name) == is_local(key)
        }
        self.retry_at, other.retry_at = start, self.retry_at

    def ticket(self, paused: str | None = None) -> Ticket:
        """
        Return what the task takes along when it leaves this worker.

        Its reservations in this worker's own buckets stay behind.

        Args:
            paused: The pause that it waits for, if any.
        """
        reservations = {key: at for key, at in self.reservations.items() if not is_local(key)}
        return Ticket(reservations, self.waiting_since, self.due_since, paused, self.seen_at)

    def slot_wait(self, now: float) -> float:
        """Return the seconds for which it has waited for a slot of this worker at *now*, on the monotonic clock."""
        return now - max(self.received_at, self.retry_at)

    def time_to_retry(self, now: float) -> float:
        """Return the seconds until it is due, from *now* on the monotonic clock; 0 if that is not known."""
        return max(0.0, self.retry_at - now) if self.retry_at < inf else 0.0

    def patience(self, waited: float) -> float:
        """Return the seconds until it expires or exceeds its ``max_wait``, once it has waited *waited* seconds."""
        longest = inf if self.policy.max_wait is None else self.policy.max_wait - waited
        return min(self.time_left(waited), longest)

    def time_left(self, waited: float) -> float:
        """Return the seconds until it expires, once it has waited *waited* seconds; infinity: it does not expire."""
        if self.expires_at is None or self.waiting_since is None:
            return inf
        return self.expires_at - self.waiting_since - waited

    def longest_countdown(self, waited: float) -> float:
        """Return the seconds after which it returns in vain, likewise: it has expired by then."""
        return max(0.0, self.time_left(waited)) + EXPIRY_MARGIN
