"""How long the server works on a call, by its own count; a server has one thread for all its clients."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import median

import redis
from workers import redis_server

from comparison.contestant import Contestant, racer, threaded_racer
from comparison.redis_limiters import AWAKE_FLOOR, FLOOR, Place, threaded
from comparison.results import Entry, Row
from comparison.rows import entered

#: Threads that share a client, and levels.
SHAPES = ((1, 1), (1, 3), (16, 1), (16, 3))

#: What a script calls is counted on its own and in the script.
_SCRIPTS = ("cmdstat_evalsha", "cmdstat_eval", "cmdstat_fcall")


def rows(rounds: int = 7, calls: int = 320) -> list[Row]:
    """Measure admitted calls: one caller, whom the server waits for, and many, at one level and at three."""
    with redis_server() as port:
        place = Place(port)
        contestants = [one for one in threaded(place) if one.name not in (FLOOR, AWAKE_FLOOR)]
        return [row(place, contestants, *shape, rounds, calls) for shape in SHAPES]


def row(  # noqa: PLR0913, PLR0917 - what a row may vary
    place: Place, contestants: Sequence[Contestant], threads: int, levels: int, rounds: int, calls: int
) -> Row:
    """Let *contestants* make so many calls each round, in turns."""
    ready = partial(racer, levels=levels) if threads == 1 else partial(threaded_racer, threads=threads, levels=levels)
    racers, left_out = entered(contestants, ready)
    spent: dict[str, list[float]] = {one.name: [] for one in racers}
    for one in racers:
        one.run(threads)
    for turn in range(rounds):
        for one in racers[turn % len(racers) :] + racers[: turn % len(racers)]:
            place.client.config_resetstat()
            one.run(calls)
            spent[one.name].append(_microseconds(place.client) / calls)
    entries = [Entry(one.name, one.role, {"server_us": median(spent[one.name])}) for one in racers]
    title = f"{threads} thread" + ("s" if threads > 1 else "") + f", {levels} level" + ("s" if levels > 1 else "")
    for entry in entries:
        print(f"server, {title}: {entry.name} {entry.values['server_us']:.2f} µs")
    return Row(f"server-{threads}-{levels}", title, entries, left_out)


def _microseconds(client: redis.Redis) -> float:
    """Return the µs that the commands of clients have taken since the count was reset."""
    stats = client.info("commandstats")
    scripts = [stats[name]["usec"] for name in _SCRIPTS if name in stats]
    others = [figures["usec"] for name, figures in stats.items() if not name.startswith("cmdstat_config")]
    return float(sum(scripts or others))
