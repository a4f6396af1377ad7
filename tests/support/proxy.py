"""A TCP proxy: a load balancer that forgets its connections, or the fixed address of servers that fail over."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

__all__ = ["Proxy"]

HOST = "127.0.0.1"


class Proxy:
    """
    Forwards connections to :attr:`target`.

    Args:
        target: The port of the server for new connections; may be changed at any time.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self._generation = 0
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self.accepted = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def drop(self) -> None:
        """Forward nothing any more over the established connections, and leave them open."""
        self._generation += 1

    def close(self) -> None:
        """Close the proxy and its connections."""
        self.drop()
        for end in [self._listener, *self._sockets]:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for it
            end.close()

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection((HOST, self.target))
            except OSError:
                client.close()
                continue
            self.accepted += 1
            self._sockets += client, server
            for source, sink in ((client, server), (server, client)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._forward, args=(source, sink, self._generation), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, generation: int) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if generation == self._generation:
                    sink.sendall(data)
            if generation == self._generation:
                sink.shutdown(socket.SHUT_WR)
