"""Starts the deferred tasks of a paused tenant or task type when the pause has ended, before their ETA."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any
from weakref import WeakSet

from celery import signals

from bucketflow_celery.scheduling.ticket import HEADER, Ticket
from bucketflow_celery.worker.deferred_requests import deferred_requests

__all__ = ["PauseWatch"]

logger = logging.getLogger("bucketflow_celery.worker")

#: Seconds between two checks for pauses that have ended.
CHECK_INTERVAL = 0.25


class PauseWatch:
    """
    Knows the tasks that a worker keeps until their ETA because of a pause.

    Args:
        consumer: Celery's ``Consumer``, connected.
        paused: Returns the names of the pauses in force; see :func:`bucketflow_celery.config.table.pause_name`.
        refresh: Compares the limits in force with the store's, if that is due.
        call_after: Runs a callback in the worker's loop after a number of seconds.
    """

    def __init__(
        self,
        consumer: Any,
        paused: Callable[[], AbstractSet[str]],
        refresh: Callable[[], None],
        call_after: Callable[[float, Callable[[], None]], Any],
    ) -> None:
        self._consumer = consumer
        self._paused = paused
        self._refresh = refresh
        self._call_after = call_after
        self._waiting: defaultdict[str, WeakSet[Any]] = defaultdict(WeakSet)  # by pause
        self._is_checking = self._closed = False

    def start(self) -> None:
        """Watch from now on."""
        signals.task_received.connect(self._on_received, sender=self._consumer)

    def close(self) -> None:
        """Watch no more."""
        self._closed = True
        signals.task_received.disconnect(self._on_received, sender=self._consumer)

    def _on_received(self, request: Any, **_: Any) -> None:
        header = request.request_dict.get(HEADER)
        pause = Ticket.read(header).paused if header is not None else None
        if pause is None:
            return
        self._waiting[pause].add(request)
        if not self._is_checking:
            self._is_checking = True
            self._call_after(CHECK_INTERVAL, self._check)

    def _check(self) -> None:
        if self._closed:
            return
        try:
            self._refresh()  # the worker may have nothing else to do
            self._start_resumed()
        finally:
            self._is_checking = bool(self._waiting)
            if self._is_checking:
                self._call_after(CHECK_INTERVAL, self._check)

    def _start_resumed(self) -> None:
        paused = self._paused()
        resumed: set[Any] = set()
        for pause, requests in list(self._waiting.items()):
            if not requests or pause not in paused:
                resumed.update(self._waiting.pop(pause))
        if resumed:
            self._end_countdowns(resumed)

    def _end_countdowns(self, requests: AbstractSet[Any]) -> None:
        entries = [
            deferred.entry
            for deferred in deferred_requests(self._consumer)
            if deferred.request in requests and not deferred.is_nearly_due
        ]
        # As they were refused first: their ETAs are spread at random.
        for entry in sorted(entries, key=lambda entry: _waiting_since(entry.args[0])):
            entry.cancel()
            try:
                entry.fun(*entry.args)
            except Exception:  # as Celery's timer does
                logger.exception("timer callback failed")


def _waiting_since(request: Any) -> float:
    return Ticket.read(request.request_dict[HEADER]).waiting_since or 0.0
