"""The fleet while it is up: acts follow each other on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich.console import Console

from bucketflow_celery.demo.fleet import WORKERS, Watch
from bucketflow_celery.demo.ledger import Ledger
from bucketflow_celery.demo.place import Place
from bucketflow_celery.demo.processes import Programs
from bucketflow_celery.demo.records import Records
from bucketflow_celery.demo.run import follow
from bucketflow_celery.demo.screen import Lines, Rows, Screen
from bucketflow_celery.demo.workload import Order

__all__ = ["Stage"]


class Stage:
    """
    Where acts are played.

    Args:
        console: Where they are shown.
        place: Where the workers write.
        programs: The workers, ready.
    """

    def __init__(self, console: Console, place: Place, programs: Programs) -> None:
        self._console = console
        self._place = place
        self._programs = programs
        self._played: list[tuple[Ledger, Records]] = []

    def play(self, orders: Sequence[Order], rows_of: Callable[[Ledger], Rows]) -> Ledger:
        """Send *orders* and follow what becomes of them, on a screen that shows what *rows_of* makes of it."""
        ledger, records = Ledger(orders, time.monotonic()), Records(self._place)
        self._played.append((ledger, records))
        kind = Screen if self._console.is_terminal else Lines
        screen = kind(self._console, ledger, rows_of(ledger))
        watch = Watch()
        watch.start()

        def show(now: float) -> None:
            self._programs.check()
            screen.show(now, watch.counters)

        try:
            with screen.shown():
                follow(ledger, records, show)
        finally:
            watch.end()
        return ledger

    def clear(self) -> None:
        """End the workers, and enter what they have done since their act."""
        self._programs.retire(*WORKERS)
        for ledger, records in self._played:
            records.read_into(ledger)
            records.close()
