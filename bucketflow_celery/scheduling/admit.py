"""
Who may start now, who waits, and until when. Pure: no clock, no store, no Celery.

Beside its bucket every level keeps the end of its line: the last place that was promised. Whoever is refused is
promised the next: so much later as the bucket needs to earn what this task costs, so that all who wait come back one by
one, find their tokens, and nobody overtakes. A place orders; it holds no tokens and never pays: whoever comes back must
find real tokens, so a fleet that was away for an hour cannot turn its old promises into a burst.

``lua/admit.lua`` mirrors this file line by line; a property test feeds both the same questions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, replace

from bucketflow.algorithm.gcra import FULL, take, wait_for
from bucketflow.limit import SECOND, Limit
from bucketflow_celery.config.levels import Level

__all__ = ["EMPTY", "FOREVER", "LATE", "PATIENCE", "Answer", "Ask", "LevelState", "admit", "current_state", "leave"]

#: µs after which a promised place is lost: who comes later than that joins the line again.
LATE = 60 * SECOND

#: µs by which the place of one who is excused from a line comes before the one it waits for: so they can be told apart.
EXCUSED = 1

#: µs a bucket may stay full while its line is not empty. Longer than that, nobody is coming: the line is dissolved.
PATIENCE = 2 * SECOND

#: µs a task waits at most that never gives up: the largest whole number that a double counts to.
FOREVER = 1 << 53


@dataclass(frozen=True, slots=True)
class LevelState:
    """
    What the store keeps of a level.

    Attributes:
        full_at: The bucket: the instant in µs at which it is full again.
        line_at: The end of its line: the instant in µs of the last place that was promised; 0 if none was.
        capacity: Of the limit that both were reckoned under.
        fill_rate: Likewise.
    """

    full_at: float
    line_at: float
    capacity: float = 0.0
    fill_rate: float = 0.0

    def under(self, limit: Limit, now: int) -> LevelState:
        """
        Return the state under *limit*, which may have changed since.

        What was taken stays taken, up to an empty bucket, and as many tokens as were promised stay promised: both take
        as long as they take at the new rate.
        """
        if self.capacity == limit.capacity and self.fill_rate == limit.fill_rate:
            return self
        full_at, line_at, scale = self.full_at, self.line_at, self.fill_rate / limit.fill_rate
        if full_at > now:
            full_at = now + min((full_at - now) * scale, limit.span)
        if line_at > now:
            line_at = now + (line_at - now) * scale
        return LevelState(full_at, line_at, limit.capacity, limit.fill_rate)


#: A level nobody has used: a full bucket, no line.
EMPTY = LevelState(FULL, 0.0)


@dataclass(frozen=True, slots=True)
class Ask:
    """
    The question of one task: whether it may start.

    Attributes:
        path: The levels it passes, root first; length >= 1.
        cost: Tokens it takes from each of them; above 0, at most the smallest capacity.
        dues: The place it was promised at each level, in µs of the store's clock; 0 where it has none.
            Same length and order as *path*.
        patience: Most µs it would still wait. One that would give up is promised no place.
        backlog: The queue whose parked tasks it must not overtake; ``None``: it is not parked when it is refused.
        tenant: Whom it is for; ``""``: for nobody in particular.
    """

    path: tuple[Level, ...]
    cost: float
    dues: tuple[int, ...]
    patience: int = FOREVER
    backlog: str | None = None
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """
    The answer to one :class:`Ask`.

    Attributes:
        admitted: Whether the tokens were taken, at every level.
        binding: Index of the level with the longest wait; ``None`` if admitted, or if the question was not put
            because a bucket it needs had just refused another of the same call, or others are parked before it.
        wait: µs until asking again is worth while; 0 if admitted or not put.
        dues: The places it now has, as in :class:`Ask`.
    """

    admitted: bool
    binding: int | None
    wait: int
    dues: tuple[int, ...]


def admit(
    asks: Sequence[Ask],
    states: MutableMapping[str, LevelState],
    now: int,
    blocks: Callable[[str, str], bool] = lambda _queue, _tenant: False,
) -> list[Answer]:
    """
    Answer *asks* in their order, each as if it had come alone, and update *states*.

    Once ``all`` or a queue has refused a task, the rest of that line is not asked: only its head needs a place.

    Args:
        asks: Length >= 0.
        states: By key; a missing key is a level nobody has used.
        now: µs on the clock that stamped *states*.
        blocks: Whether a fresh task of this queue and tenant would overtake one that is parked.

    Returns:
        One answer an ask, same length and order.
    """
    dry: set[str] = set()
    answers = []
    for ask in asks:
        if any(level.key in dry for level in ask.path) or (ask.backlog is not None and blocks(ask.backlog, ask.tenant)):
            answers.append(Answer(admitted=False, binding=None, wait=0, dues=ask.dues))
            continue
        answer = _admit_one(ask, states, now)
        answers.append(answer)
        if answer.binding is not None and not ask.path[answer.binding].returns:
            dry.add(ask.path[answer.binding].key)
    return answers


def _admit_one(ask: Ask, states: MutableMapping[str, LevelState], now: int) -> Answer:
    dues = [0 if due < now - LATE else due for due in ask.dues]
    waits, current = [], []
    for index, level in enumerate(ask.path):
        state = current_state(level, states, now)
        if dues[index] > max(now, state.line_at):  # behind the end of the line is no place: it was promised elsewhere
            dues[index] = 0
        turn = _next_place(level, state, ask.cost)
        is_over = turn > now or (state.line_at and state.line_at + PATIENCE <= now)
        if is_over and state.full_at + PATIENCE <= now:
            state, turn = replace(state, line_at=0.0), 0.0
            states[level.key] = state
        current.append(state)
        place = (dues[index] or turn) - now
        waits.append(max(wait_for(level.limit, state.full_at, now, ask.cost), math.ceil(place)))
    wait = max(waits)
    if wait <= 0:
        for level, state in zip(ask.path, current, strict=True):
            states[level.key] = replace(state, full_at=take(level.limit, state.full_at, now, ask.cost))
        return Answer(admitted=True, binding=None, wait=0, dues=tuple(dues))
    binding = waits.index(wait)
    if wait <= ask.patience:
        due = now + wait
        if _book(ask.path, binding, waits, dues, due):
            states[ask.path[binding].key] = replace(current[binding], line_at=float(due))
    return Answer(admitted=False, binding=binding, wait=wait, dues=tuple(dues))


def current_state(level: Level, states: MutableMapping[str, LevelState], now: int) -> LevelState:
    """
    Return the state of *level* under its limit.

    If that is another than before it is stored at once: reckoned from what was with each question, it would never fill.
    """
    known = states.get(level.key, EMPTY)
    state = known.under(level.limit, now)
    if state is not known and known is not EMPTY:
        states[level.key] = state
    return state


def _book(path: tuple[Level, ...], binding: int, waits: list[int], dues: list[int], due: int) -> bool:
    """Write the places of a refused task into *dues*; return whether the line that binds moves on to *due*."""
    # Only the line with the longest wait moves on. A place at another level would come while the task still waits, and
    # pass unused: it is excused from that line instead, for when it comes back all who were there before it have gone.
    moves = dues[binding] == 0
    if moves:
        dues[binding] = due
    for index, level in enumerate(path):
        if path[binding].returns and level.returns and waits[index] > 0 and dues[index] == 0:
            dues[index] = due - EXCUSED
    return moves


def _next_place(level: Level, state: LevelState, cost: float) -> float:
    # By the cost of who comes next: the one before leaves an empty bucket, and these tokens must come first.
    return state.line_at + cost * SECOND / level.limit.fill_rate if state.line_at else 0.0


def leave(ask: Ask, states: MutableMapping[str, LevelState], now: int) -> None:
    """Give the place in *ask* back: the line that moved on for it ends that much earlier."""
    latest = max(ask.dues)
    for level, due in zip(ask.path, ask.dues, strict=True):
        state = states.get(level.key, EMPTY).under(level.limit, now)
        if due == latest > now and state.line_at > now:
            line_at = state.line_at - ask.cost * SECOND / level.limit.fill_rate
            states[level.key] = replace(state, line_at=max(0.0, line_at))
