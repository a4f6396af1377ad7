"""
Local processes for the tests, each in its own directory and session.

A process ends with the test or fixture that started it, at the latest with the interpreter. If a program is not
installed, the test is skipped. Where ``CI`` is set it fails instead, so that no promise goes untested.
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


def _ports() -> range:
    """Return the ports of this process: each pytest-xdist worker has a share of its own."""
    # Below the ephemeral range: the system may give such a port to a connection before the server starts.
    first, last = 10_000, 32_000
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = (last - first) // workers
    return range(first + number % workers * share, first + (number % workers + 1) * share)


def free_port() -> int:
    """Return a port that no process listens on; never the same one twice."""
    while True:
        port = random.choice(_ports())
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            if port not in _given:
                _given.add(port)
                return port


def wait_until(predicate: Callable[[], object], timeout: float = 10.0, pause: float = 0.01) -> None:
    """
    Return once *predicate* is true. An exception counts as not true yet.

    Args:
        predicate: Called repeatedly.
        timeout: Seconds until ``TimeoutError``.
        pause: Seconds between two calls.
    """
    deadline = time.monotonic() + timeout
    error: Exception | None = None
    while True:
        try:
            if predicate():
                return
        except Exception as raised:  # noqa: BLE001 - any error may be transient; after the timeout it is chained
            error = raised
        if time.monotonic() > deadline:
            raise TimeoutError(f"still not true after {timeout:g} s") from error
        time.sleep(pause)


def missing(reason: str) -> NoReturn:
    """Skip the test for *reason*, or fail it on CI."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


class Process:
    """
    A program that runs until stopped, in its own session so that its children can be killed with it.

    Args:
        argv: Program and arguments.
        directory: Working directory, created if missing; the file ``log`` in it receives the output.
        env: Additions to this process's environment.
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
        """Send SIGKILL to the program and its children."""
        self._signal_all(signal.SIGKILL)
        self._child.wait(10)

    def stop(self) -> None:
        """End the program with SIGTERM, within 10 s; then end what remains of its session with SIGKILL."""
        if self.running:
            self.resume()
            self._child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(10)
        self.kill()
        atexit.unregister(self.kill)

    def pause(self) -> None:
        """Suspend the program and its children: the kernel accepts connections for it, but nothing replies."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._child.pid, number)
        except ProcessLookupError:
            return
