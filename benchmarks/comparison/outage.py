"""
How long a caller waits for the news that Redis is gone, or that it hangs; everybody with their own defaults.

All call at once, each in a thread of its own: who only waits does not slow the others down.
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

from workers import redis_server

from comparison.contestant import AMPLE, Contestant, prepared
from comparison.redis_limiters import Place, in_tasks, threaded
from comparison.results import Entry, Row
from comparison.rows import ABSENT

#: Nobody is waited for longer than this, in seconds.
CAP = 15.0


@dataclass
class Caller:
    """
    One who calls.

    Attributes:
        one: Whom it calls.
        seconds: How long it took until the call came back; ``None``: it has not.
        answer: What it came back with.
        absent: Why it cannot call at all.
        ready: Set when it has called once, or cannot.
    """

    one: Contestant
    seconds: float | None = None
    answer: str = ""
    absent: str = ""
    ready: threading.Event = field(default_factory=threading.Event)

    def run(self, go: threading.Event) -> None:
        """Call once; call again as soon as *go* is set."""
        try:
            self._call(go) if "await " not in self.one.call else asyncio.run(self._call_in_loop(go))
        except ABSENT as error:
            self.absent = str(error)
            self.ready.set()

    def _call(self, go: threading.Event) -> None:
        it, loop = prepared(self.one, AMPLE)
        loop(it, 1)
        with self._timed(go):
            self.answer = "admits" if loop(it, 1) else "refuses"

    async def _call_in_loop(self, go: threading.Event) -> None:
        it, loop = prepared(self.one, AMPLE)
        await loop(it, 1)
        with self._timed(go):
            self.answer = "admits" if await loop(it, 1) else "refuses"

    @contextmanager
    def _timed(self, go: threading.Event) -> Iterator[None]:
        self.ready.set()
        go.wait()
        begin = time.monotonic()
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the news
            self.answer = type(error).__name__
        self.seconds = time.monotonic() - begin


def rows(cap: float = CAP) -> list[Row]:
    """Measure a server that is gone, and one that hangs."""
    kill, stop = partial(_signalled, signal.SIGKILL), partial(_signalled, signal.SIGSTOP)
    return [row("outage-gone", "gone", kill, cap), row("outage-hung", "hung", stop, cap)]


def contestants(port: int) -> list[Contestant]:
    """Return everybody, each with clients of its own."""
    names = [one.name for one in threaded(Place(port))]
    callers = [threaded(Place(port))[at] for at in range(len(names))]
    names = [one.name for one in in_tasks(Place(port))]
    callers += [replace(in_tasks(Place(port))[at], name=f"{name}, asyncio") for at, name in enumerate(names)]
    return [one for one in callers if one.role != "floor"]


def row(key: str, title: str, strike: Callable[[Place], None], cap: float) -> Row:
    """Let all call a server, *strike* it, and let them call again."""
    go = threading.Event()
    with redis_server() as port:
        callers = [Caller(one) for one in contestants(port)]
        for caller in callers:
            threading.Thread(target=caller.run, args=[go], daemon=True).start()
            caller.ready.wait(10)
        strike(Place(port))
        go.set()
        end = time.monotonic() + cap
        while time.monotonic() < end and any(not one.absent and one.seconds is None for one in callers):
            time.sleep(0.05)
        entries = [_entry(caller) for caller in callers if not caller.absent]
    for entry in entries:
        print(f"{title}: {entry.name} {entry.values['seconds'] or cap:.2f} s {entry.note}")
    return Row(key, title, entries, {caller.one.name: caller.absent for caller in callers if caller.absent})


def _entry(caller: Caller) -> Entry:
    return Entry(caller.one.name, caller.one.role, {"seconds": caller.seconds}, caller.answer or "nothing yet")


def _signalled(number: signal.Signals, place: Place) -> None:
    os.kill(place.client.info("server")["process_id"], number)
    time.sleep(0.2)
