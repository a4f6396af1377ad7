"""What the gate needs of the worker it stands in: the seam between the throttle and Celery."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from bucketflow.errors import BucketflowError
from bucketflow_celery.admission.pending_task import Entry
from bucketflow_celery.config.levels import Level

__all__ = ["Host"]


class Host(Protocol):
    """A worker, as the gate sees it. Times are in seconds."""

    def free(self) -> int:
        """Return how many slots of the pool are free."""

    def when_free(self, callback: Callable[[], None]) -> None:
        """Call *callback* when a slot gets free; asking twice is asking once."""

    def start(self, entry: Entry) -> None:
        """Run a task in a free slot."""

    def is_gone(self, entry: Entry) -> bool:
        """Return whether the task was revoked or has expired; Celery has then dealt with it."""

    def send_back(self, entry: Entry, countdown: float) -> bool:
        """
        Publish the task again, due in *countdown* seconds, with its ticket; then acknowledge this delivery.

        Returns ``False``, and acknowledges nothing, if the broker did not take it.
        """

    def give_back(self, entry: Entry) -> bool:
        """Leave this delivery to the broker, for any worker; ``False`` if it must stay here."""

    def fail(self, request: Any, error: BucketflowError) -> None:
        """Store *error* as the task's result, call its errbacks, acknowledge."""

    def hold(self, entry: Entry, level: Level | None) -> None:
        """Take note that a task is held because of *level*; ``None``: because the store is away."""

    def unhold(self, entry: Entry) -> None:
        """Take note that it is no longer."""

    def refused(self, entry: Entry, level: Level, wait: float) -> None:
        """Take note of a refusal, for whoever watches."""

    def call_after(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call *callback* in *seconds*, or earlier: of several calls only the nearest need be kept."""

    def monotonic(self) -> float:
        """Return the time of a clock that never steps."""

    def time(self) -> float:
        """Return the time since the Unix epoch."""
