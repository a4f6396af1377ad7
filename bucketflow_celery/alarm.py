"""Callbacks at their time, from a thread of their own: for workers without an event loop."""

from __future__ import annotations

import logging
import sched
import threading
from collections.abc import Callable
from time import monotonic

__all__ = ["Alarm"]

logger = logging.getLogger(__name__)


class Alarm:
    """
    A timer that is not late when something nearer is asked of it while it sleeps.

    Celery's own for such workers sleeps until what it knew of when it fell asleep, up to a second.
    """

    def __init__(self) -> None:
        self._scheduler = sched.scheduler(monotonic)
        self._changed = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def call_after(self, seconds: float, callback: Callable[[], None]) -> sched.Event:
        """Call *callback* in *seconds*; return what :meth:`cancel` takes."""
        event = self._scheduler.enter(seconds, 0, callback)
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="bucketflow-alarm", daemon=True)
                self._thread.start()
        self._changed.set()
        return event

    def cancel(self, event: sched.Event) -> None:
        """Forget *event*, unless it has come."""
        try:
            self._scheduler.cancel(event)
        except ValueError:
            return  # it has

    def _run(self) -> None:
        while True:
            try:
                seconds = self._scheduler.run(blocking=False)
            except Exception:  # whose callback it was does not matter to the others
                logger.exception("a callback failed")
                continue
            self._changed.wait(seconds)
            self._changed.clear()
