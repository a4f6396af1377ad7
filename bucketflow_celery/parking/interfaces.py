"""What a waiting room needs of those around it: the worker, its gate, its lease, and who knows the limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.config.levels import Level
from bucketflow_celery.scheduling.model import DispatchedTask, ParkedMessage, TenantSpec, TenantSummary

__all__ = ["ActiveLimits", "Desk", "ParkingWorker", "Tenure"]


class ParkingWorker(Protocol):
    """A worker, as its waiting room sees it."""

    def parcel(self, task: PendingTask, *, again: bool) -> ParkedMessage | None:
        """
        Return *task* ready to be parked; ``None`` if it cannot be.

        Args:
            task: The task.
            again: Whether another message is parked already that looks the same.
        """

    def is_fresh(self, task: PendingTask) -> bool:
        """Return whether the broker says that it delivers *task* for the first time."""

    def is_redelivered(self, task: PendingTask) -> bool:
        """Return whether the broker says that it has delivered *task* before."""

    def parked(self, task: PendingTask, position: int) -> None:
        """Acknowledge a message that is stored, at *position* of its lane; 0: it was before."""

    def receive(self, dispatched: DispatchedTask, on_end: Callable[[bool], None]) -> PendingTask | None:
        """
        Return a task that was dispatched out, as if the broker had delivered it; ``None`` if nobody can read it.

        Args:
            dispatched: The task.
            on_end: To be called, from any thread, with ``False`` when it is acknowledged or dropped, with ``True`` when
                it goes back to where it was.
        """

    def start(self, task: PendingTask) -> None:
        """Run it in a free slot."""

    def is_revoked_or_expired(self, task: PendingTask) -> bool:
        """Return whether it was revoked or has expired; Celery has then dealt with it."""

    def give_up(self, task: PendingTask) -> None:
        """End a task whose time is over, or that can never start; its result tells which."""

    def is_settled(self, task: PendingTask) -> bool:
        """Return whether a task that is gone or was given up has ended; else its end could not be stored."""

    def request_scale_up(self, more: bool) -> None:  # noqa: FBT001 - one fact
        """Take note that all free slots are used now, and whether *more* tasks are parked."""

    def queues(self) -> Sequence[str]:
        """Return the queues this worker consumes."""

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call *callback* in the worker's loop, from any thread."""

    def monotonic(self) -> float:
        """Return seconds of a clock that never steps."""


class Desk(Protocol):
    """The gate, as the waiting room behind it sees it."""

    def run(self) -> None:
        """Do a round, in which the waiting room does its work."""

    def keep(self, task: PendingTask, seconds: float) -> None:
        """Hold an task that could not be parked, for so many seconds."""

    def leave(self, task: PendingTask) -> None:
        """Take note that an task does not wait in the worker any more."""


class Tenure(Protocol):
    """A worker's lease."""

    worker: str

    def holds(self) -> bool:
        """Return whether nobody can have taken this worker for dead."""


class ActiveLimits(Protocol):
    """What knows the limits."""

    version: str

    def refresh(self) -> None:
        """Read the limits again. Raises ``StoreUnavailable``."""

    def queue_path(self, queue: str) -> tuple[Level, ...]:
        """Return the levels that all tasks of *queue* pass."""

    def tenant_spec(self, queue: str, known: TenantSummary) -> TenantSpec:
        """Return what this worker says about a tenant of *queue*."""
