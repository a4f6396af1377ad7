"""What the gate needs of the worker it stands in: the seam between the throttle and Celery."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, Protocol

from bucketflow.errors import BucketflowError
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.config.levels import Level

__all__ = ["NoParking", "Parking", "Worker"]


class Worker(Protocol):
    """A worker, as the gate sees it. Times are in seconds."""

    def free(self) -> int:
        """Return how many slots of the pool are free."""

    def when_free(self, callback: Callable[[], None]) -> None:
        """Call *callback* when a slot gets free; asking twice is asking once."""

    def start(self, task: PendingTask) -> None:
        """Run a task in a free slot."""

    def is_revoked_or_expired(self, task: PendingTask) -> bool:
        """Return whether the task was revoked or has expired; Celery has then dealt with it."""

    def defer(self, task: PendingTask, countdown: float) -> bool:
        """
        Publish the task again, due in *countdown* seconds, with its ticket; then acknowledge this delivery.

        Returns ``False``, and acknowledges nothing, if the broker did not take it.
        """

    def requeue(self, task: PendingTask) -> bool:
        """Leave this delivery to the broker, for any worker; ``False`` if it must stay here."""

    def fail(self, request: Any, error: BucketflowError) -> None:
        """Store *error* as the task's result, call its errbacks, acknowledge."""

    def hold(self, task: PendingTask, level: Level | None) -> None:
        """Take note that a task is held because of *level*; ``None``: because the store is away."""

    def release(self, task: PendingTask) -> None:
        """Take note that it is no longer."""

    def refused(self, task: PendingTask, level: Level, wait: float) -> None:
        """Take note of a refusal, for whoever watches."""

    def call_after(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call *callback* in *seconds*, or earlier: of several calls only the nearest need be kept."""

    def monotonic(self) -> float:
        """Return the time of a clock that never steps."""

    def time(self) -> float:
        """Return the time since the Unix epoch."""


class Parking(Protocol):
    """
    Parking, as admission sees it.

    Attributes:
        is_open: Whether tasks can be parked.
        reserved: Slots kept free for tasks that a request for dispatch may bring.
        must_look: Whether new limits may be in force.
        looked_at: When the version of the limits was last read, in seconds of the monotonic clock.
    """

    is_open: bool
    reserved: int
    must_look: bool
    looked_at: float

    def blocks(self, task: PendingTask) -> bool:
        """Return whether the tenant of *task* is known to have tasks parked, so that *task* need not ask."""

    def may_have(self, task: PendingTask) -> bool:
        """Return whether *task* may have been parked before: only parking it can tell."""

    def add(self, task: PendingTask) -> None:
        """Park *task*."""

    def wake_at(self) -> float | None:
        """Return when to work next, in seconds of the monotonic clock; ``None`` while a call is on its way."""

    def work(self, free: Callable[[], int]) -> None:
        """Send what there is to send; *free* returns the number of free slots."""

    def on_reply(self) -> None:
        """Act on the outcome of the call that was on its way, if it is there."""


class NoParking:
    """Parking of a worker that parks nothing: a null object of :class:`Parking`."""

    is_open = False
    reserved = 0
    must_look = False
    looked_at = -inf

    def blocks(self, task: PendingTask) -> bool:  # noqa: ARG002
        """Return ``False``: no tenant has tasks parked."""
        return False

    def may_have(self, task: PendingTask) -> bool:  # noqa: ARG002
        """Return ``False``: nothing was parked before."""
        return False

    def add(self, task: PendingTask) -> None:
        """Raise: nothing can be parked."""
        raise NotImplementedError(task)

    def wake_at(self) -> float | None:
        """Return ``None``: there is no call to make."""
        return None

    def work(self, free: Callable[[], int]) -> None:
        """Do nothing."""

    def on_reply(self) -> None:
        """Do nothing."""
