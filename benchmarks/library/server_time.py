"""Rows of the server's time for a call, by its own count. One thread of the server serves all clients."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import redis

from benchmarks.library.implementation import Implementation, runner, threaded_runner
from benchmarks.library.redis_limiters import BASELINE, POLLED_BASELINE, Database, for_threads
from benchmarks.library.results import Entry, Row
from benchmarks.library.rows import available
from benchmarks.library.targets import BUSY
from benchmarks.library.timing import Runner
from benchmarks.server import redis_server

#: The commands of a script are counted twice: on their own and as part of the script.
_SCRIPTS = ("cmdstat_evalsha", "cmdstat_eval", "cmdstat_fcall")

_WORD = re.compile(rb'"((?:[^"\\]|\\.)*)"')
_END = b"end of the recording"
#: Calls in one pipeline at most, so that all replies fit into the socket buffers.
_BATCH = 50


def rows(rounds: int = 7, calls: int = 300) -> list[Row]:
    """Measure admitted calls at one level and at three: of one caller, of 16, and replayed without a pause."""
    with redis_server() as port:
        database = Database(port)
        implementations = [one for one in for_threads(database) if one.name not in (BASELINE, POLLED_BASELINE)]
        runs: dict[str, Callable[..., Runner]] = {
            BUSY: partial(replayed, database),
            "16 threads": partial(threaded_runner, threads=16),
            "1 thread": runner,
        }
        table = []
        for name, prepare in runs.items():
            for levels in (1, 3):
                title = f"{name}, {levels} level" + ("s" if levels > 1 else "")
                table.append(row(database, implementations, partial(prepare, levels=levels), title, rounds, calls))
        return table


def row(  # noqa: PLR0913, PLR0917 - what a row may vary
    database: Database,
    implementations: Sequence[Implementation],
    prepare: Callable[[Implementation], Runner],
    title: str,
    rounds: int,
    calls: int,
) -> Row:
    """Let the runners that *prepare* makes make *calls* calls in each round, alternately."""
    runners, left_out = available(implementations, prepare)
    spent: dict[str, list[float]] = {one.name: [] for one in runners}
    for one in runners:
        one.run(16)
    for number in range(rounds):
        for one in runners[number % len(runners) :] + runners[: number % len(runners)]:
            database.client.config_resetstat()
            one.run(calls)
            spent[one.name].append(_microseconds(database.client) / calls)
    entries = [Entry(one.name, one.role, {"server_us": median(spent[one.name])}) for one in runners]
    for entry in entries:
        print(f"server, {title}: {entry.name} {entry.values['server_us']:.2f} µs")
    return Row(f"server, {title}", title, entries, left_out)


def replayed(database: Database, one: Implementation, levels: int) -> Runner:
    """Return a runner that sends the recorded commands of a call of *one* repeatedly, in pipelines."""
    live = runner(one, levels=levels)
    live.run(1)  # the commands of the first call alone, such as SCRIPT LOAD, are not recorded
    commands = _recorded(database, live)

    def run(calls: int) -> int:
        for begin in range(0, calls, _BATCH):
            pipeline = database.client.pipeline(transaction=False)
            for command in commands * min(_BATCH, calls - begin):
                pipeline.execute_command(*command)
            pipeline.execute()
        return calls

    return Runner(one.name, one.role, run)


def _recorded(database: Database, live: Runner) -> list[list[bytes]]:
    """Return the commands of one call, recorded by MONITOR."""
    commands = []
    with socket.create_connection(("127.0.0.1", database.port)) as monitor, monitor.makefile("rb") as lines:
        monitor.sendall(b"MONITOR\r\n")
        lines.readline()
        live.run(1)
        database.client.echo(_END)
        for line in lines:
            words = [word.decode("unicode_escape").encode("latin-1") for word in _WORD.findall(line)]
            if words[-1] == _END:
                return commands
            if b" lua] " not in line:  # not a command of a script
                commands.append(words)
    raise RuntimeError("MONITOR ended before the recording did")


def _microseconds(client: redis.Redis) -> float:
    """Return the server's µs for the clients' commands since the statistics were reset."""
    stats = client.info("commandstats")
    scripts = [stats[name]["usec"] for name in _SCRIPTS if name in stats]
    others = [figures["usec"] for name, figures in stats.items() if not name.startswith("cmdstat_config")]
    return float(sum(scripts or others))
