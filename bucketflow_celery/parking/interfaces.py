"""What a waiting room needs of those around it: the worker, its gate, its lease, and who knows the limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from bucketflow_celery.admission.pending_task import Entry
from bucketflow_celery.config.levels import Level
from bucketflow_celery.scheduling.model import Candidate, Handed, Known, Parcel

__all__ = ["Book", "Desk", "RoomHost", "Tenure"]


class RoomHost(Protocol):
    """A worker, as its waiting room sees it."""

    def parcel(self, entry: Entry, *, again: bool) -> Parcel | None:
        """
        Return *entry* ready to be parked; ``None`` if it cannot be.

        Args:
            entry: The task.
            again: Whether another message is parked already that looks the same.
        """

    def is_fresh(self, entry: Entry) -> bool:
        """Return whether the broker says that it delivers *entry* for the first time."""

    def is_redelivered(self, entry: Entry) -> bool:
        """Return whether the broker says that it has delivered *entry* before."""

    def parked(self, entry: Entry, position: int) -> None:
        """Acknowledge a message that is stored, at *position* of its lane; 0: it was before."""

    def receive(self, handed: Handed, on_end: Callable[[bool], None]) -> Entry | None:
        """
        Return a task that was handed out, as if the broker had delivered it; ``None`` if nobody can read it.

        Args:
            handed: The task.
            on_end: To be called, from any thread, with ``False`` when it is acknowledged or dropped, with ``True`` when
                it goes back to where it was.
        """

    def start(self, entry: Entry) -> None:
        """Run it in a free slot."""

    def is_gone(self, entry: Entry) -> bool:
        """Return whether it was revoked or has expired; Celery has then dealt with it."""

    def give_up(self, entry: Entry) -> None:
        """End a task whose time is over, or that can never start; its result tells which."""

    def is_settled(self, entry: Entry) -> bool:
        """Return whether a task that is gone or was given up has ended; else its end could not be stored."""

    def lacks_slots(self, more: bool) -> None:  # noqa: FBT001 - one fact
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

    def keep(self, entry: Entry, seconds: float) -> None:
        """Hold an entry that could not be parked, for so many seconds."""

    def leave(self, entry: Entry) -> None:
        """Take note that an entry does not wait in the worker any more."""


class Tenure(Protocol):
    """A worker's lease."""

    worker: str

    def holds(self) -> bool:
        """Return whether nobody can have taken this worker for dead."""


class Book(Protocol):
    """What knows the limits."""

    version: str

    def renew(self) -> None:
        """Read the limits again. Raises ``StoreUnavailable``."""

    def common(self, queue: str) -> tuple[Level, ...]:
        """Return the levels that all tasks of *queue* pass."""

    def candidate(self, queue: str, known: Known) -> Candidate:
        """Return what this worker says about a tenant of *queue*."""
