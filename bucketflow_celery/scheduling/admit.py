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

__all__ = [
    "EMPTY",
    "NO_DEADLINE",
    "RESERVATION_GRACE",
    "RESERVATION_TTL",
    "AdmissionDecision",
    "AdmissionRequest",
    "LevelState",
    "admit",
    "cancel_reservation",
    "current_state",
]

#: µs after which a promised place is lost: who comes later than that joins the line again.
RESERVATION_GRACE = 60 * SECOND

#: µs by which the place of one who is excused from a line comes before the one it waits for: so they can be told apart.
WAIVER = 1

#: µs a bucket may stay full while its line is not empty. Longer than that, nobody is coming: the line is dissolved.
RESERVATION_TTL = 2 * SECOND

#: µs a task waits at most that never gives up: the largest whole number that a double counts to.
NO_DEADLINE = 1 << 53


@dataclass(frozen=True, slots=True)
class LevelState:
    """
    What the store keeps of a level.

    Attributes:
        full_at: The bucket: the instant in µs at which it is full again.
        reserved_until: The end of its line: the instant in µs of the last place that was promised; 0 if none was.
        capacity: Of the limit that both were reckoned under.
        fill_rate: Likewise.
    """

    full_at: float
    reserved_until: float
    capacity: float = 0.0
    fill_rate: float = 0.0

    def rebased_on(self, limit: Limit, now: int) -> LevelState:
        """
        Return the state under *limit*, which may have changed since.

        What was taken stays taken, up to an empty bucket, and as many tokens as were promised stay promised: both take
        as long as they take at the new rate.
        """
        if self.capacity == limit.capacity and self.fill_rate == limit.fill_rate:
            return self
        full_at, reserved_until, scale = self.full_at, self.reserved_until, self.fill_rate / limit.fill_rate
        if full_at > now:
            full_at = now + min((full_at - now) * scale, limit.span)
        if reserved_until > now:
            reserved_until = now + (reserved_until - now) * scale
        return LevelState(full_at, reserved_until, limit.capacity, limit.fill_rate)


#: A level nobody has used: a full bucket, no line.
EMPTY = LevelState(FULL, 0.0)


@dataclass(frozen=True, slots=True)
class AdmissionRequest:
    """
    The question of one task: whether it may start.

    Attributes:
        path: The levels it passes, root first; length >= 1.
        cost: Tokens it takes from each of them; above 0, at most the smallest capacity.
        reservations: The place it was promised at each level, in µs of the store's clock; 0 where it has none.
            Same length and order as *path*.
        max_wait_us: Most µs it would still wait. One that would give up is promised no place.
        backlog: The queue whose parked tasks it must not overtake; ``None``: it is not parked when it is refused.
        tenant: Whom it is for; ``""``: for nobody in particular.
    """

    path: tuple[Level, ...]
    cost: float
    reservations: tuple[int, ...]
    max_wait_us: int = NO_DEADLINE
    backlog: str | None = None
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class AdmissionDecision:
    """
    The decision to one :class:`AdmissionRequest`.

    Attributes:
        admitted: Whether the tokens were taken, at every level.
        binding: Index of the level with the longest wait; ``None`` if admitted, or if the question was not put
            because a bucket it needs had just refused another of the same call, or others are parked before it.
        wait: µs until asking again is worth while; 0 if admitted or not put.
        reservations: The places it now has, as in :class:`AdmissionRequest`.
    """

    admitted: bool
    binding: int | None
    wait: int
    reservations: tuple[int, ...]


def admit(
    requests: Sequence[AdmissionRequest],
    states: MutableMapping[str, LevelState],
    now: int,
    blocks: Callable[[str, str], bool] = lambda _queue, _tenant: False,
) -> list[AdmissionDecision]:
    """
    AdmissionDecision *requests* in their order, each as if it had come alone, and update *states*.

    Once ``all`` or a queue has refused a task, the rest of that line is not asked: only its head needs a place.

    Args:
        requests: Length >= 0.
        states: By key; a missing key is a level nobody has used.
        now: µs on the clock that stamped *states*.
        blocks: Whether a fresh task of this queue and tenant would overtake one that is parked.

    Returns:
        One decision an request, same length and order.
    """
    exhausted: set[str] = set()
    decisions = []
    for request in requests:
        if any(level.key in exhausted for level in request.path) or (
            request.backlog is not None and blocks(request.backlog, request.tenant)
        ):
            decisions.append(AdmissionDecision(admitted=False, binding=None, wait=0, reservations=request.reservations))
            continue
        decision = _admit_one(request, states, now)
        decisions.append(decision)
        if decision.binding is not None and request.path[decision.binding].blocks_queue:
            exhausted.add(request.path[decision.binding].key)
    return decisions


def _admit_one(request: AdmissionRequest, states: MutableMapping[str, LevelState], now: int) -> AdmissionDecision:
    reservations = [0 if due < now - RESERVATION_GRACE else due for due in request.reservations]
    waits, current = [], []
    for index, level in enumerate(request.path):
        state = current_state(level, states, now)
        if reservations[index] > max(
            now, state.reserved_until
        ):  # behind the end of the line is no place: it was promised elsewhere
            reservations[index] = 0
        turn = _next_place(level, state, request.cost)
        is_over = turn > now or (state.reserved_until and state.reserved_until + RESERVATION_TTL <= now)
        if is_over and state.full_at + RESERVATION_TTL <= now:
            state, turn = replace(state, reserved_until=0.0), 0.0
            states[level.key] = state
        current.append(state)
        place = (reservations[index] or turn) - now
        waits.append(max(wait_for(level.limit, state.full_at, now, request.cost), math.ceil(place)))
    wait = max(waits)
    if wait <= 0:
        for level, state in zip(request.path, current, strict=True):
            states[level.key] = replace(state, full_at=take(level.limit, state.full_at, now, request.cost))
        return AdmissionDecision(admitted=True, binding=None, wait=0, reservations=tuple(reservations))
    binding = waits.index(wait)
    if wait <= request.max_wait_us:
        due = now + wait
        if _reserve(request.path, binding, waits, reservations, due):
            states[request.path[binding].key] = replace(current[binding], reserved_until=float(due))
    return AdmissionDecision(admitted=False, binding=binding, wait=wait, reservations=tuple(reservations))


def current_state(level: Level, states: MutableMapping[str, LevelState], now: int) -> LevelState:
    """
    Return the state of *level* under its limit.

    If that is another than before it is stored at once: reckoned from what was with each question, it would never fill.
    """
    known = states.get(level.key, EMPTY)
    state = known.rebased_on(level.limit, now)
    if state is not known and known is not EMPTY:
        states[level.key] = state
    return state


def _reserve(path: tuple[Level, ...], binding: int, waits: list[int], reservations: list[int], due: int) -> bool:
    """Write the places of a refused task into *reservations*; return whether the line that binds moves on to *due*."""
    # Only the line with the longest wait moves on. A place at another level would come while the task still waits, and
    # pass unused: it is excused from that line instead, for when it comes back all who were there before it have gone.
    moves = reservations[binding] == 0
    if moves:
        reservations[binding] = due
    for index, level in enumerate(path):
        if (
            (not path[binding].blocks_queue)
            and (not level.blocks_queue)
            and waits[index] > 0
            and reservations[index] == 0
        ):
            reservations[index] = due - WAIVER
    return moves


def _next_place(level: Level, state: LevelState, cost: float) -> float:
    # By the cost of who comes next: the one before leaves an empty bucket, and these tokens must come first.
    return state.reserved_until + cost * SECOND / level.limit.fill_rate if state.reserved_until else 0.0


def cancel_reservation(request: AdmissionRequest, states: MutableMapping[str, LevelState], now: int) -> None:
    """Give the place in *request* back: the line that moved on for it ends that much earlier."""
    latest = max(request.reservations)
    for level, due in zip(request.path, request.reservations, strict=True):
        state = states.get(level.key, EMPTY).rebased_on(level.limit, now)
        if due == latest > now and state.reserved_until > now:
            reserved_until = state.reserved_until - request.cost * SECOND / level.limit.fill_rate
            states[level.key] = replace(state, reserved_until=max(0.0, reserved_until))
