"""How long the server works on a call, by its own count; a server has one thread for all its clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import redis
from workers import redis_server

from comparison.contestant import AMPLE, Contestant, prepared
from comparison.redis_limiters import AWAKE_FLOOR, FLOOR, Place, threaded
from comparison.results import Entry, Row
from comparison.rows import ABSENT

#: What a script calls is counted on its own and in the script.
_SCRIPTS = ("cmdstat_evalsha", "cmdstat_eval", "cmdstat_fcall")


def rows(rounds: int = 7, calls: int = 500) -> list[Row]:
    """Measure one level and three, admitted."""
    with redis_server() as port:
        place = Place(port)
        contestants = [one for one in threaded(place) if one.name not in (FLOOR, AWAKE_FLOOR)]
        return [row(place, contestants, levels, rounds, calls) for levels in (1, 3)]


def row(place: Place, contestants: Sequence[Contestant], levels: int, rounds: int, calls: int) -> Row:
    """Let *contestants* make so many calls each round, in turns."""
    ready: dict[str, tuple[Any, Callable[[Any, int], Any]]] = {}
    left_out = {}
    for one in contestants:
        try:
            it, loop = ready[one.name] = prepared(one, AMPLE, levels)
            loop(it, 1)
        except ABSENT as error:
            left_out[one.name] = str(error)
    spent: dict[str, list[float]] = {name: [] for name in ready}
    for turn in range(rounds):
        names = list(ready)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            it, loop = ready[name]
            place.client.config_resetstat()
            loop(it, calls)
            spent[name].append(_microseconds(place.client) / calls)
    roles = {one.name: one.role for one in contestants}
    entries = [Entry(name, roles[name], {"server_us": median(times)}) for name, times in spent.items()]
    for entry in entries:
        print(f"server, {levels} levels: {entry.name} {entry.values['server_us']:.2f} µs")
    return Row(f"server-{levels}", f"{levels} level" + ("s" if levels > 1 else ""), entries, left_out)


def _microseconds(client: redis.Redis) -> float:
    """Return the µs that the commands of clients have taken since the count was reset."""
    stats = client.info("commandstats")
    scripts = [stats[name]["usec"] for name in _SCRIPTS if name in stats]
    others = [figures["usec"] for name, figures in stats.items() if not name.startswith("cmdstat_config")]
    return float(sum(scripts or others))
