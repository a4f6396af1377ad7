"""
Local processes for the tests: each in its own directory and session.

A process ends with whoever started it, or at the latest with the interpreter. A program that this machine does not have
skips the test, and fails it where ``CI`` is set: there a skipped promise is a broken one.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import pytest

__all__ = ["HOST", "Process", "free_port", "missing", "wait_until"]

HOST = "127.0.0.1"


_given: set[int] = set()


def free_port() -> int:
    """Return a port nobody listens on, and that is not given twice."""
    while True:
        # Below the ports the system gives to outgoing connections: one of those may be taken before the server starts.
        port = random.randint(10_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            if port not in _given:
                _given.add(port)
                return port


def wait_until(predicate: Callable[[], object], timeout: float = 10.0, pause: float = 0.01) -> None:
    """Return once *predicate* is true; one that raises is not true yet. After *timeout* seconds: ``TimeoutError``."""
    deadline = time.monotonic() + timeout
    error: Exception | None = None
    while True:
        try:
            if predicate():
                return
        except Exception as raised:  # noqa: BLE001 - whatever it is, it may pass, and is shown if it does not
            error = raised
        if time.monotonic() > deadline:
            raise TimeoutError(f"still not true after {timeout:g} s") from error
        time.sleep(pause)


def missing(reason: str) -> NoReturn:
    """Skip the test for *reason*, or fail it on CI."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


class Process:
    """
    A program that runs until stopped, in a session of its own so that its children end with it.

    Args:
        argv: Program and arguments.
        directory: Where it runs, and where its output goes (``log``).
        env: Added to this process's environment.
    """

    def __init__(self, argv: Sequence[str], directory: Path, env: Mapping[str, str] | None = None) -> None:
        self.argv = [str(word) for word in argv]
        self.directory = directory
        self.log = directory / "log"
        self._env = {**os.environ, **(env or {})}
        directory.mkdir(parents=True, exist_ok=True)
        atexit.register(self.kill)
        self.launch()

    def launch(self) -> None:
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                self.argv,
                cwd=self.directory,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    def kill(self) -> None:
        """SIGKILL, for it and its children."""
        self._signal_all(signal.SIGKILL)
        self._child.wait(10)

    def stop(self) -> None:
        """AdmissionRequest it to end; insist after 10 s."""
        if self.running:
            self.resume()
            self._child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(10)
        self.kill()
        atexit.unregister(self.kill)

    def pause(self) -> None:
        """Hang: the kernel still accepts connections, nobody answers."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._child.pid, number)
        except ProcessLookupError:
            return
