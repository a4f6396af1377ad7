"""Run something in the worker's own loop, from any thread: at once, or at its time."""

from __future__ import annotations

import logging
import sched
import socket
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any

from celery.utils.timer2 import Timer as ThreadedTimer

__all__ = ["LoopWaker", "TimerThread", "timer_of"]

logger = logging.getLogger(__name__)


class TimerThread:
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


class LoopWaker:
    """
    Wakes a worker's loop.

    Celery's event loop looks at ``call_soon`` only after it has woken for another reason, up to a second later: a pool
    of threads would idle meanwhile. A socket that the loop watches wakes it at once. Without the event loop
    (gevent, eventlet, brokers that cannot be polled) the timer does it.

    Args:
        timer: See :func:`timer_of`.
    """

    def __init__(self, timer: Any) -> None:
        self.timer = timer
        self._callbacks: deque[Callable[[], None]] = deque()
        self._pair: tuple[socket.socket, socket.socket] | None = None

    def register(self, hub: Any) -> None:
        """Have *hub* watch the socket, anew for each connection to the broker."""
        if self._pair is None:
            self._pair = socket.socketpair()
            for end in self._pair:
                end.setblocking(False)  # noqa: FBT003 - the socket module's own signature
        hub.add_reader(self._pair[0], self._on_readable)

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Run *callback* in the loop."""
        if self._pair is None:
            self.timer.call_after(0, callback)
            return
        self._callbacks.append(callback)
        try:
            self._pair[1].send(b"\0")
        except BlockingIOError:
            return  # it is full of reasons to wake up already

    def _on_readable(self) -> None:
        if self._pair is not None:
            self._pair[0].recv(4096)
        while self._callbacks:
            self._callbacks.popleft()()


def timer_of(consumer: Any) -> Any:
    """Return what calls back at a time in a worker: has ``call_after(seconds, callback)`` and ``cancel(task)``."""
    return TimerThread() if isinstance(consumer.timer, ThreadedTimer) else consumer.timer
