"""Run something in the worker's own loop, from any thread, at once."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from celery.utils.timer2 import Timer as ThreadedTimer

from bucketflow_celery.alarm import Alarm

__all__ = ["Wakeup", "timer_of"]


class Wakeup:
    """
    Wakes a worker's loop.

    Celery's event loop looks at ``call_soon`` only after it has woken for another reason, up to a second later: a pool
    of threads would idle meanwhile. A socket that the loop watches wakes it at once. Without the event loop
    (gevent, eventlet, brokers that cannot be polled) the timer does it.

    Args:
        timer: See :func:`timer_of`.
    """

    def __init__(self, timer: Any) -> None:
        self._timer = timer
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
            self._timer.call_after(0, callback)
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
    """Return what calls back at a time in a worker: has ``call_after(seconds, callback)`` and ``cancel(entry)``."""
    return Alarm() if isinstance(consumer.timer, ThreadedTimer) else consumer.timer
