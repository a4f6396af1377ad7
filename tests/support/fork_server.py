"""
Fork server: starts Celery workers from a process that has imported Celery.

Importing Celery, kombu, redis and the throttle takes nine tenths of the time that a worker needs to start. The server
imports them once and forks a child for each worker. The child runs ``python -m celery`` as a new interpreter does: in a
session of its own, with its own directory, environment, standard streams, ``sys.argv`` and ``sys.path``. It ends with
the end of its main program, so exit handlers run. The modules of a test are never imported before the fork.

The server runs one child for each connection. It reports the exit of the child there and reaps it when the connection
is closed, so that the pid stays valid until the test has seen the exit code. A child whose connection is closed early
is killed with its process group: no worker outlives the process of the tests, even if that is killed.

Not for gevent and eventlet, which must patch the standard library before Celery is imported.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["ForkedWorker"]

#: Modules that a worker imports. None of them creates an app, opens a connection or starts a thread.
PRELOADED = (
    "bucketflow_celery.worker.bootstep",
    "celery.apps.worker",
    "celery.backends.redis",
    "celery.bin.celery",
    "celery.concurrency.prefork",
    "celery.concurrency.solo",
    "celery.concurrency.thread",
    "celery.worker.worker",
    "kombu.transport.pyamqp",
    "kombu.transport.redis",
)


class ForkedWorker:
    """A child of the fork server, with the interface of :class:`subprocess.Popen`."""

    def __init__(self, argv: Sequence[str], directory: Path, env: Mapping[str, str], log: Path) -> None:
        self.returncode: int | None = None
        self._connection, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(_connect(), [b"+"], [theirs.fileno()])
        request = {"argv": list(argv), "directory": str(directory), "env": dict(env), "log": str(log)}
        self._connection.sendall(json.dumps(request).encode() + b"\n")
        self._replies = self._connection.makefile("r")
        self.pid: int = self._read("pid")

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or ``None`` while the process runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Return the exit code within *timeout* seconds, or raise ``subprocess.TimeoutExpired``."""
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("celery", timeout)
            self.returncode = self._read("returncode")
            self._replies.close()
            self._connection.close()
        return self.returncode

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def _read(self, name: str) -> int:
        line = self._replies.readline()
        if not line:
            raise RuntimeError("the fork server has ended")
        return json.loads(line)[name]


@cache
def _connect() -> socket.socket:
    """Start the server of this process and return the socket to it. The server ends when the socket is closed."""
    ours, theirs = socket.socketpair()
    with theirs:
        server = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            env={**os.environ, "C_FORCE_ROOT": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
    atexit.register(server.wait)
    atexit.register(ours.close)
    return ours


class _Server:
    """The loop of the server process: forks children, reports their exit codes and reaps them."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._wakeup, self._signals = socket.socketpair()
        self._signals.setblocking(False)  # noqa: FBT003 - its only argument
        self._selector = selectors.DefaultSelector()
        self._running: dict[socket.socket, int] = {}
        self._exited: dict[socket.socket, int] = {}

    def serve(self) -> tuple[socket.socket, dict[str, Any]] | None:
        """Serve until *control* is closed and return ``None``. In a child, return its connection and its request."""
        signal.signal(signal.SIGCHLD, lambda *_: None)  # an ignored signal would not be written to the wakeup socket
        signal.set_wakeup_fd(self._signals.fileno(), warn_on_full_buffer=False)
        self._selector.register(self._control, selectors.EVENT_READ)
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._wakeup:
                    self._wakeup.recv(4096)
                    self._report()
                elif key.fileobj is not self._control:
                    self._reap(key.fileobj)
                elif (connection := self._accept()) is None:
                    return self._end()
                elif request := self._fork(connection):
                    return connection, request

    def _accept(self) -> socket.socket | None:
        _, received, *_ = socket.recv_fds(self._control, 1, 1)
        return socket.socket(fileno=received[0]) if received else None

    def _fork(self, connection: socket.socket) -> dict[str, Any] | None:
        """Fork a child for the request that *connection* brings, and return the request in the child."""
        with connection.makefile("r") as requests:
            request = json.loads(requests.readline())
        child = os.fork()
        if child == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._selector.close()
            for other in (self._control, self._wakeup, self._signals, *self._running, *self._exited):
                other.close()
            return request
        self._running[connection] = child
        self._selector.register(connection, selectors.EVENT_READ)
        return None

    def _report(self) -> None:
        """Report the exit codes of children. They stay zombies, so that their pids remain valid."""
        for connection, pid in list(self._running.items()):
            if exited := os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                code = exited.si_status if exited.si_code == os.CLD_EXITED else -exited.si_status
                self._exited[connection] = self._running.pop(connection)
                with contextlib.suppress(OSError):
                    connection.sendall(json.dumps({"returncode": code}).encode() + b"\n")

    def _reap(self, connection: socket.socket) -> None:
        """Reap the child of *connection*, which the client has closed: it knows the exit code or does not need it."""
        self._selector.unregister(connection)
        if connection in self._running:
            self._exited[connection] = self._running.pop(connection)
            self._kill(self._exited[connection])
        os.waitpid(self._exited.pop(connection), 0)
        connection.close()

    def _end(self) -> None:
        for pid in self._running.values():
            self._kill(pid)
        while self._running:
            self._wakeup.recv(4096)
            self._report()

    def _kill(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def _run(connection: socket.socket, request: dict[str, Any]) -> None:
    """Make this process a new ``python -m celery``, report its pid, and run it."""
    os.setsid()
    os.chdir(request["directory"])
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.environ.clear()
    os.environ.update(request["env"])
    path = filter(None, request["env"].get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = [request["directory"], *dict.fromkeys((*path, *sys.path[1:]))]  # without this script's directory
    sys.argv[1:] = request["argv"]
    importlib.invalidate_caches()
    with connection:
        connection.sendall(json.dumps({"pid": os.getpid()}).encode() + b"\n")
    runpy.run_module("celery", run_name="__main__", alter_sys=True)


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    for module in PRELOADED:
        importlib.import_module(module)
    gc.freeze()  # the garbage collector of a child would write to every page
    if child := _Server(control).serve():
        _run(*child)


if __name__ == "__main__":
    main()
