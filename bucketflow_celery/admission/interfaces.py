"""What admission needs of the worker and of parking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import NamedTuple, Protocol

from bucketflow.errors import BucketflowError
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.config.levels import Level, ThrottlePolicy
from bucketflow_celery.scheduling.admit import AdmissionRequest

__all__ = ["NoParking", "Parking", "WaitLimits", "Worker"]


class WaitLimits(NamedTuple):
    """
    The longest waits outside of the queue, in seconds.

    Attributes:
        max_hold: A message held longer is requeued.
        max_countdown: No countdown is longer.
        max_unacknowledged: A message that this worker has had for longer is requeued, wherever it waits.
    """

    max_hold: float
    max_countdown: float
    max_unacknowledged: float = inf


class Worker(Protocol):
    """
    A worker, as admission sees it. Times are in seconds.

    Attributes:
        can_hold_many: Whether it can hold many messages and receive others at the same time.
        keeps_deferred: Whether deferred tasks wait in a worker. It starts those of a pause before their ETA when the
            pause ends. If not, they wait in the broker.
        hold_limit: Most messages that it should hold for tenants and task types.
    """

    can_hold_many: bool
    keeps_deferred: bool
    hold_limit: float

    def resolve(self, task: PendingTask) -> ThrottlePolicy:
        """Return what limits *task*. Raises ``BucketflowError`` if that cannot be determined."""

    def free(self) -> int:
        """Return the number of free slots of the pool."""

    def when_free(self, callback: Callable[[], None]) -> None:
        """Call *callback* once when a slot becomes free. A second registration of the same callback has no effect."""

    def start(self, task: PendingTask) -> None:
        """Run *task* in a free slot."""

    def is_revoked_or_expired(self, task: PendingTask) -> bool:
        """Return whether *task* was revoked or has expired; Celery has ended it then."""

    def can_defer(self, task: PendingTask) -> bool:
        """Return whether :meth:`defer` is worth trying: not if a copy is impossible, or the broker refuses it."""

    def defer(self, task: PendingTask, countdown: float) -> bool:
        """
        Publish *task* again, due in *countdown* seconds (0: at once), with its ticket; then acknowledge this delivery.

        Returns ``False``, and acknowledges nothing, if the broker did not accept it.
        """

    def queueing_delay(self, queue: str) -> float:
        """Return the estimated seconds until a message at the end of *queue* is delivered to a worker."""

    def requeue(self, task: PendingTask) -> bool:
        """Leave this delivery to the broker, for any worker; ``False`` if it must stay here."""

    def fail(self, task: PendingTask, error: BucketflowError) -> None:
        """Store *error* as the result of *task*, call its errbacks, acknowledge."""

    def hold(self, task: PendingTask, level: Level | None) -> None:
        """Make room in the prefetch window for *task*, held by *level*; ``None``: because the store is away."""

    def release(self, task: PendingTask) -> None:
        """Undo :meth:`hold`."""

    def drop(self, task: PendingTask) -> None:
        """End *task*, which was purged: acknowledge it without a result, and cancel its reservations."""

    def end_purged(self, reservations: Sequence[AdmissionRequest]) -> int:
        """
        End the purged tasks that wait here for their ETA, and return their number.

        When this returns, *reservations* are cancelled, and those of all tasks that were dropped so far.
        """

    def record_refusal(self, task: PendingTask, level: Level, wait: float) -> None:
        """Log and announce that *level* has refused *task* for *wait* seconds."""

    def call_after(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call *callback* in *seconds*, or earlier. Of several registrations only the nearest is kept."""

    def monotonic(self) -> float:
        """Return the time of a clock that never steps."""

    def time(self) -> float:
        """Return the time since the Unix epoch."""


class Parking(Protocol):
    """Parking, as admission sees it."""

    @property
    def is_open(self) -> bool:
        """Whether tasks can be parked."""

    @property
    def reserved_slots(self) -> int:
        """Free slots for which tasks were requested and not yet received."""

    def blocks(self, task: PendingTask, now: float) -> bool:
        """Return whether the tenant of *task* is known to have parked tasks at *now*, on the monotonic clock."""

    def add(self, task: PendingTask) -> None:
        """Park *task*."""

    def next_work_at(self) -> float | None:
        """Return when to call :meth:`work` next, in seconds of the monotonic clock; ``None``: after the next reply."""

    def work(self, free: Callable[[], int]) -> None:
        """Send the calls that are due; *free* returns the number of slots for parked tasks."""

    def on_reply(self) -> None:
        """Act on the reply to the call in flight, if there is one."""


class NoParking:
    """Implements :class:`Parking` for a worker that parks nothing."""

    is_open = False
    reserved_slots = 0

    def blocks(self, task: PendingTask, now: float) -> bool:  # noqa: ARG002
        """See :class:`Parking`."""
        return False

    def add(self, task: PendingTask) -> None:
        """Raise: nothing can be parked."""
        raise NotImplementedError(task)

    def next_work_at(self) -> float | None:
        """See :class:`Parking`."""
        return None

    def work(self, free: Callable[[], int]) -> None:
        """See :class:`Parking`."""

    def on_reply(self) -> None:
        """See :class:`Parking`."""
