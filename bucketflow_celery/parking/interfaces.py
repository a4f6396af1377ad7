"""What parking needs of the worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from bucketflow_celery.admission.interfaces import Worker
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.scheduling.model import DispatchedTask, ParkedMessage

__all__ = ["ParkingWorker"]


class ParkingWorker(Worker, Protocol):
    """A worker, as parking sees it."""

    def encode(self, task: PendingTask, *, is_duplicate: bool) -> ParkedMessage | None:
        """
        Return the message of *task* as it is parked; ``None`` if it cannot be encoded.

        Args:
            task: The task.
            is_duplicate: Whether another message with the same uid is parked already.
        """

    def on_parked(self, task: PendingTask, position: int) -> None:
        """Acknowledge a message that is stored at *position* of its lane; 0: an earlier delivery of it was."""

    def receive(self, dispatched: DispatchedTask, on_end: Callable[[bool], None]) -> PendingTask | None:
        """
        Return a dispatched task, as if the broker had delivered it; ``None`` if it cannot be decoded.

        Args:
            dispatched: The task.
            on_end: To be called, from any thread, with ``False`` when the task is acknowledged or dropped, with
                ``True`` when it must return to its lane.
        """

    def end_unstarted(self, task: PendingTask) -> bool:
        """
        End a dispatched task whose deadline has passed, or whose cost exceeds a capacity; its result says which.

        Returns ``False`` if it cannot end now and must return to its lane. Else it is acknowledged, now or later.
        """

    def is_acknowledged(self, task: PendingTask) -> bool:
        """Return whether *task* was acknowledged; a task whose end could not be stored is not."""

    def request_scale_up(self) -> None:
        """Ask the autoscaler for a slot: all slots are used, and more tasks are parked."""

    def queues(self) -> Sequence[str]:
        """Return the queues this worker consumes."""

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call *callback* in the worker's loop, from any thread."""
