"""Run something in the worker's own loop, from any thread, at once."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from typing import Any

__all__ = ["Wakeup"]


class Wakeup:
    """
    Wakes a worker's loop.

    Celery's event loop looks at ``call_soon`` only after it has woken for another reason, up to a second later: a pool
    of threads would idle meanwhile. A socket that the loop watches wakes it at once. Without the event loop
    (gevent, eventlet, brokers that cannot be polled) the timer does it.

    Args:
        consumer: Celery's ``Consumer``.
    """

    def __init__(self, consumer: Any) -> None:
        self._timer = consumer.timer
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
