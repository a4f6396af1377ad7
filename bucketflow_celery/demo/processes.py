"""Programs that the demo starts, and that end with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bucketflow_celery.demo.interrupts import Interrupts

__all__ = ["DemoError", "Programs"]

#: Seconds a program has to end by itself.
GRACE = 5.0


class DemoError(Exception):
    """What the demo needs is not there, or does not work."""


class Programs:
    """
    The programs that run now, each in a session of its own so that its children end with it.

    Args:
        directory: Where their output goes.
        interrupts: Kept away while a program is started or ended: one nobody knows of would stay.
    """

    def __init__(self, directory: Path, interrupts: Interrupts) -> None:
        self._directory = directory
        self._interrupts = interrupts
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """
        Start a program.

        Raises:
            OSError: It cannot be started.
        """
        with self._interrupts.held(), self._log(name).open("wb") as log:
            self._running[name] = subprocess.Popen(  # noqa: S603 - our own words
                argv,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def check(self) -> None:
        """
        Raise if a program has ended by itself.

        Raises:
            DemoError: It shows the end of the program's output.
        """
        for name, process in self._running.items():
            if process.poll() is not None:
                raise DemoError(f"{name} ended with status {process.returncode}:\n{self.tail(name)}")

    def tail(self, name: str) -> str:
        """Return the last lines a program wrote."""
        return "\n".join(self._log(name).read_text(errors="replace").splitlines()[-12:])

    def retire(self, *names: str) -> None:
        """AdmissionRequest programs to end, and give them some time for it."""
        for name in names:
            self._running[name].terminate()
        deadline = time.monotonic() + GRACE
        for name in names:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._running[name].wait(max(0.0, deadline - time.monotonic()))

    def kill(self) -> None:
        """End every program that was started, and all of its children."""
        with self._interrupts.held():
            for process in self._running.values():
                _signal_group(process.pid, signal.SIGKILL)
            deadline = time.monotonic() + GRACE
            for process in self._running.values():
                process.wait()
                while _signal_group(process.pid, 0) and time.monotonic() < deadline:
                    time.sleep(0.01)
            self._running.clear()

    def _log(self, name: str) -> Path:
        return self._directory / f"{name}.log"


def _signal_group(group: int, number: int) -> bool:
    """Signal a group of processes; return whether anybody is left in it."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS says the latter of those that have ended
        return False
    return True
