"""The deferred tasks that a worker keeps until their ETA, in the timer of Celery's consumer."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic
from typing import Any, NamedTuple

from celery.worker.request import Request

from bucketflow_celery.scheduling.ticket import HEADER

__all__ = ["DeferredRequest", "deferred_requests"]

#: A task that is due within so many seconds is left to admission: Celery's timer may have taken it already.
NEARLY_DUE = 1.0


class DeferredRequest(NamedTuple):
    """
    A request with a ticket that waits for its ETA.

    Attributes:
        request: Celery's request.
        entry: The entry of the timer that passes it on at its ETA.
        eta: Seconds of the monotonic clock.
    """

    request: Any
    entry: Any
    eta: float

    @property
    def is_nearly_due(self) -> bool:
        """Whether Celery's timer may have taken it already."""
        return self.eta <= monotonic() + NEARLY_DUE


def deferred_requests(consumer: Any) -> Iterator[DeferredRequest]:
    """Yield the deferred requests that *consumer*, Celery's, keeps until their ETA, the earliest first."""
    for event in consumer.timer.queue:
        entry = event.entry
        request = entry.args[0] if entry.args else None
        if isinstance(request, Request) and HEADER in request.request_dict and not entry.canceled:
            yield DeferredRequest(request, entry, event.eta)
