"""A row of a race: who takes part, and what the race says of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import median

from comparison.contestant import Contestant
from comparison.race import Racer, Standing, UnequalCountError, best_peer, named, race
from comparison.results import OURS, Entry, Row

#: What a contestant lacks who cannot take part: its package, a keyword, or the ability.
ABSENT = (ImportError, FileNotFoundError, NotImplementedError)


def entered(
    contestants: Iterable[Contestant], ready: Callable[[Contestant], Racer]
) -> tuple[list[Racer], dict[str, str]]:
    """Return those who are *ready*, and why the others are not."""
    racers, left_out = [], {}
    for one in contestants:
        try:
            racers.append(ready(one))
        except ABSENT as error:
            left_out[one.name] = str(error)
    return racers, left_out


def raced(  # noqa: PLR0913 - what a row is, and how it is run
    key: str,
    title: str,
    contestants: Iterable[Contestant],
    ready: Callable[[Contestant], Racer],
    *,
    also: Iterable[Racer] = (),
    rounds: int = 9,
    slice_seconds: float = 0.03,
    refused: bool = False,
) -> Row:
    """
    Run one row. A peer that admits another number of calls than it is asked to is left out.

    Args:
        key: See :class:`comparison.results.Row`.
        title: See :class:`comparison.results.Row`.
        contestants: Who should take part.
        ready: Makes a racer of one; raises one of :data:`ABSENT` if that one cannot take part.
        also: Further racers.
        rounds: See :func:`comparison.race.race`.
        slice_seconds: See :func:`comparison.race.race`.
        refused: See :func:`comparison.race.race`.
    """
    racers, left_out = entered(contestants, ready)
    racers += also
    standings: list[Standing] = []
    while not standings:
        try:
            standings = race(racers, rounds=rounds, slice_seconds=slice_seconds, refused=refused)
        except UnequalCountError as error:
            if error.racer.role != "peer":
                raise
            racers.remove(error.racer)  # it does other work than the others
            left_out[error.racer.name] = f"admitted {error.admitted} of {error.calls} calls instead of {error.wanted}"
    floor, ours = (named(standings, name) for name in (_floor(standings), OURS))
    entries = [_entry(one, floor, ours) for one in standings]
    _show(title, standings, floor, ours)
    return Row(key, title, entries, left_out)


def _floor(standings: list[Standing]) -> str:
    return next(one.name for one in standings if one.role == "floor")


def _entry(one: Standing, floor: Standing, ours: Standing) -> Entry:
    values = {
        "seconds": one.typical,
        "rate": 1 / one.typical,
        "cpu": median(one.cpu),
        "over_floor": one.over(floor),
        "over_ours": one.over(ours),
    }
    return Entry(one.name, one.role, values)


def _show(title: str, standings: list[Standing], floor: Standing, ours: Standing) -> None:
    peer = best_peer(standings)
    best = "" if peer is None else f"; the best peer, {peer.name}, takes {peer.over(ours):.2f} times as long"
    print(f"{title}: {ours.typical * 1e6:.2f} µs a call, {ours.over(floor):.2f} × the floor{best}")
