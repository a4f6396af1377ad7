"""How long the server works on a call, by its own count; a server has one thread for all its clients."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import redis
from workers import redis_server

from comparison.contestant import Contestant, racer, threaded_racer
from comparison.goals import BUSY
from comparison.race import Racer
from comparison.redis_limiters import AWAKE_FLOOR, FLOOR, Place, threaded
from comparison.results import Entry, Row
from comparison.rows import entered

#: What a script calls is counted on its own and in the script.
_SCRIPTS = ("cmdstat_evalsha", "cmdstat_eval", "cmdstat_fcall")

_WORD = re.compile(rb'"((?:[^"\\]|\\.)*)"')
_END = b"the end of what is recorded"
#: Most calls sent at once: all replies must find room on their way.
_AT_ONCE = 50


def rows(rounds: int = 7, calls: int = 300) -> list[Row]:
    """Measure admitted calls at one level and at three: one caller's, the same without a pause, and many callers'."""
    with redis_server() as port:
        place = Place(port)
        contestants = [one for one in threaded(place) if one.name not in (FLOOR, AWAKE_FLOOR)]
        ways: dict[str, Callable[..., Racer]] = {
            BUSY: partial(replayed, place),
            "16 threads": partial(threaded_racer, threads=16),
            "1 thread": racer,
        }
        table = []
        for name, way in ways.items():
            for levels in (1, 3):
                title = f"{name}, {levels} level" + ("s" if levels > 1 else "")
                table.append(row(place, contestants, partial(way, levels=levels), title, rounds, calls))
        return table


def row(  # noqa: PLR0913, PLR0917 - what a row may vary
    place: Place,
    contestants: Sequence[Contestant],
    ready: Callable[[Contestant], Racer],
    title: str,
    rounds: int,
    calls: int,
) -> Row:
    """Let *contestants*, made *ready*, make so many calls each round, in turns."""
    racers, left_out = entered(contestants, ready)
    spent: dict[str, list[float]] = {one.name: [] for one in racers}
    for one in racers:
        one.run(16)
    for turn in range(rounds):
        for one in racers[turn % len(racers) :] + racers[: turn % len(racers)]:
            place.client.config_resetstat()
            one.run(calls)
            spent[one.name].append(_microseconds(place.client) / calls)
    entries = [Entry(one.name, one.role, {"server_us": median(spent[one.name])}) for one in racers]
    for entry in entries:
        print(f"server, {title}: {entry.name} {entry.values['server_us']:.2f} µs")
    return Row(f"server, {title}", title, entries, left_out)


def replayed(place: Place, one: Contestant, levels: int) -> Racer:
    """Return what sends the commands of a call of *one* again and again, many at once, as they were recorded."""
    live = racer(one, levels=levels)
    live.run(1)  # what it does but once is none of a call's
    commands = _recorded(place, live)

    def run(calls: int) -> int:
        for begin in range(0, calls, _AT_ONCE):
            pipeline = place.client.pipeline(transaction=False)
            for command in commands * min(_AT_ONCE, calls - begin):
                pipeline.execute_command(*command)
            pipeline.execute()
        return calls

    return Racer(one.name, one.role, run)


def _recorded(place: Place, live: Racer) -> list[list[bytes]]:
    """Return the commands that the server gets for one call."""
    commands = []
    with socket.create_connection(("127.0.0.1", place.port)) as monitor, monitor.makefile("rb") as lines:
        monitor.sendall(b"MONITOR\r\n")
        lines.readline()
        live.run(1)
        place.client.echo(_END)
        for line in lines:
            words = [word.decode("unicode_escape").encode("latin-1") for word in _WORD.findall(line)]
            if words[-1] == _END:
                return commands
            if b" lua] " not in line:  # what a script calls is its own
                commands.append(words)
    raise RuntimeError("the server does not tell what it is sent")


def _microseconds(client: redis.Redis) -> float:
    """Return the µs that the commands of clients have taken since the count was reset."""
    stats = client.info("commandstats")
    scripts = [stats[name]["usec"] for name in _SCRIPTS if name in stats]
    others = [figures["usec"] for name, figures in stats.items() if not name.startswith("cmdstat_config")]
    return float(sum(scripts or others))
