"""
Rows of the time until a caller gets an error once Redis is down or hangs, with the defaults of each library.

All callers call at once, each in a thread of its own: while they wait, they do not slow each other down.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from benchmarks.library.implementation import AMPLE, Implementation, prepared
from benchmarks.library.redis_limiters import Database, for_tasks, for_threads
from benchmarks.library.results import Entry, Row
from benchmarks.library.rows import UNAVAILABLE
from benchmarks.server import redis_server

#: Seconds to wait for a caller at most.
TIMEOUT = 15.0


@dataclass
class Caller:
    """
    A caller of one implementation.

    Attributes:
        one: The implementation.
        seconds: Seconds that the second call took; ``None`` until it returns.
        outcome: Its decision or error.
        unavailable: Why the implementation cannot be called.
        ready: Set once the first call has returned, or the implementation is unavailable.
    """

    one: Implementation
    seconds: float | None = None
    outcome: str = ""
    unavailable: str = ""
    ready: threading.Event = field(default_factory=threading.Event)

    def run(self, go: threading.Event) -> None:
        """Call once, and again as soon as *go* is set."""
        try:
            self._call(go) if "await " not in self.one.call else asyncio.run(self._call_in_loop(go))
        except UNAVAILABLE as error:
            self.unavailable = str(error)
            self.ready.set()

    def _call(self, go: threading.Event) -> None:
        it, loop = prepared(self.one, AMPLE)
        loop(it, 1)
        with self._timed(go):
            self.outcome = "admits" if loop(it, 1) else "refuses"

    async def _call_in_loop(self, go: threading.Event) -> None:
        it, loop = prepared(self.one, AMPLE)
        await loop(it, 1)
        with self._timed(go):
            self.outcome = "admits" if await loop(it, 1) else "refuses"

    @contextmanager
    def _timed(self, go: threading.Event) -> Iterator[None]:
        self.ready.set()
        go.wait()
        begin = time.monotonic()
        try:
            yield
        except Exception as error:  # noqa: BLE001 - any error is the outcome
            self.outcome = type(error).__name__
        self.seconds = time.monotonic() - begin


def rows(timeout: float = TIMEOUT) -> list[Row]:
    """Measure a server that is down, and one that hangs."""
    kill, stop = partial(_signalled, signal.SIGKILL), partial(_signalled, signal.SIGSTOP)
    return [row("outage-gone", "gone", kill, timeout), row("outage-hung", "hung", stop, timeout)]


def implementations(port: int) -> list[Implementation]:
    """Return all implementations, each with clients of its own."""
    names = [one.name for one in for_threads(Database(port))]
    callers = [for_threads(Database(port))[at] for at in range(len(names))]
    names = [one.name for one in for_tasks(Database(port))]
    callers += [replace(for_tasks(Database(port))[at], name=f"{name}, asyncio") for at, name in enumerate(names)]
    return [one for one in callers if one.role != "baseline"]


def row(key: str, title: str, fail: Callable[[Database], None], timeout: float) -> Row:
    """Let all callers call a server, then *fail* it, then let them call again."""
    go = threading.Event()
    with redis_server() as port:
        callers = [Caller(one) for one in implementations(port)]
        for caller in callers:
            threading.Thread(target=caller.run, args=[go], daemon=True).start()
            caller.ready.wait(10)
        fail(Database(port))
        go.set()
        end = time.monotonic() + timeout
        while time.monotonic() < end and any(not one.unavailable and one.seconds is None for one in callers):
            time.sleep(0.05)
        entries = [_entry(caller) for caller in callers if not caller.unavailable]
    for entry in entries:
        print(f"{title}: {entry.name} {entry.values['seconds'] or timeout:.2f} s {entry.note}")
    return Row(key, title, entries, {caller.one.name: caller.unavailable for caller in callers if caller.unavailable})


def _entry(caller: Caller) -> Entry:
    return Entry(caller.one.name, caller.one.role, {"seconds": caller.seconds}, caller.outcome or "no reply")


def _signalled(number: signal.Signals, database: Database) -> None:
    os.kill(database.client.info("server")["process_id"], number)
    time.sleep(0.2)
