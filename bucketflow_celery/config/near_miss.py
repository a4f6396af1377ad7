"""Near misses: names that differ from an option's by a letter or two."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["nearest"]

#: Longest name of which two wrong letters leave too little: with them ``port`` and ``code`` would be near ``cost``.
_SHORT = 4


def nearest(name: str, options: Iterable[str]) -> str | None:
    """
    Return the option that *name* most likely stands for; ``None`` if it is near none.

    Near are names with up to two letters too many, missing, wrong, or swapped with the next; one for options of at most
    4 letters. Upper and lower case are the same.

    Args:
        name: The name, which may be an option.
        options: The options, in lower case.
    """
    name = name.lower()
    similar = (option for option in options if abs(len(name) - len(option)) <= _allowed(option))
    found = ((_distance(name, option), option) for option in similar)
    return min(((edits, option) for edits, option in found if edits <= _allowed(option)), default=(0, None))[1]


def _allowed(option: str) -> int:
    return 1 if len(option) <= _SHORT else 2


def _distance(one: str, other: str) -> int:
    """Return the optimal string alignment distance: Levenshtein's, and two adjacent letters swapped count as one."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        last, before, row = before, row, [i]
        for j, wanted in enumerate(other, 1):
            edits = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                edits = min(edits, last[j - 2] + 1)
            row.append(edits)
    return row[-1]
