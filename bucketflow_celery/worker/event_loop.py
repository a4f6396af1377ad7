"""
Callbacks in a worker's event loop: at once from any thread, or after a delay.

:class:`LoopWaker` runs a callback at once, by the self-pipe technique. :func:`timer_of` returns the timer that runs one
after a delay: Celery's own, or a :class:`TimerThread` where Celery's could be late.
"""

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

logger = logging.getLogger("bucketflow_celery.worker")


class TimerThread:
    """
    Runs callbacks after a delay, in a thread of its own.

    A new callback wakes the thread, which then sleeps until the nearest one is due. Celery's threaded timer does not
    wake: it sleeps for up to a second, until the callback that was next when it fell asleep. A nearer callback that is
    added meanwhile runs late.
    """

    def __init__(self) -> None:
        self._scheduler = sched.scheduler(monotonic)
        self._changed = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def call_after(self, seconds: float, callback: Callable[[], None]) -> sched.Event:
        """Call *callback* after *seconds*; return the handle for :meth:`cancel`."""
        event = self._scheduler.enter(seconds, 0, callback)
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="bucketflow-timer", daemon=True)
                self._thread.start()
        self._changed.set()
        return event

    def cancel(self, event: sched.Event) -> None:
        """Cancel *event*. An event that has run or was cancelled before is ignored."""
        try:
            self._scheduler.cancel(event)
        except ValueError:
            return

    def _run(self) -> None:
        while True:
            try:
                seconds = self._scheduler.run(blocking=False)
            except Exception:  # one failed callback must not end the thread that runs all others
                logger.exception("timer callback failed")
                continue
            self._changed.wait(seconds)
            self._changed.clear()


class LoopWaker:
    """
    Wakes the event loop from any thread and runs callbacks in it: a self-pipe, made of a socket pair.

    Not every supported version of Kombu wakes its loop for a ``call_soon`` from another thread. The callback then waits
    until the loop wakes for another reason, up to a second later, and a pool of threads idles meanwhile. Without an
    event loop (gevent, eventlet, brokers that cannot be polled) the timer runs the callbacks.

    Args:
        timer: See :func:`timer_of`.
    """

    def __init__(self, timer: Any) -> None:
        self.timer = timer
        self._callbacks: deque[Callable[[], None]] = deque()
        self._pair: tuple[socket.socket, socket.socket] | None = None

    def register(self, hub: Any) -> None:
        """Add the socket to *hub*. Each connection to the broker needs it again, because Celery resets the hub."""
        if self._pair is None:
            self._pair = socket.socketpair()
            for end in self._pair:
                end.setblocking(False)  # noqa: FBT003 - the socket module's own signature
        hub.add_reader(self._pair[0], self._on_readable)

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Run *callback* in the event loop, as soon as possible. Thread-safe."""
        if self._pair is None:
            self.timer.call_after(0, callback)
            return
        self._callbacks.append(callback)
        try:
            self._pair[1].send(b"\0")
        except BlockingIOError:
            return  # the socket's buffer is full, so the loop is about to wake anyway

    def _on_readable(self) -> None:
        if self._pair is not None:
            self._pair[0].recv(4096)
        while self._callbacks:
            self._callbacks.popleft()()


def timer_of(consumer: Any) -> Any:
    """
    Return the timer of a worker, which has ``call_after(seconds, callback)`` and ``cancel(event)``.

    It is the consumer's own timer. A :class:`TimerThread` takes the place of Celery's threaded one.

    Args:
        consumer: Celery's ``Consumer``.
    """
    return TimerThread() if isinstance(consumer.timer, ThreadedTimer) else consumer.timer
