"""Ctrl-C, SIGTERM and SIGHUP at any moment, without leaving a process behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Interrupted", "Interrupts"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """
    Somebody wants the demo to end.

    Attributes:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Interrupts:
    """Raises :class:`Interrupted` where a signal arrives, but not where a process is being started or ended."""

    def __init__(self) -> None:
        self._held = 0
        self._pending: int | None = None

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals inside the block, but for those that whoever started this process has it ignore."""
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
        for number in before:
            signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let no signal interrupt the block; one that came meanwhile is raised after it."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        self._raise()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._pending = number
        self._raise()

    def _raise(self) -> None:
        if self._held or self._pending is None:
            return
        number, self._pending = self._pending, None
        raise Interrupted(number)
