"""
Admission control: which tasks may start now, and at which time each refused task may try again.

A level is a token bucket (GCRA) with a queue of reservations. A reservation is a start time, as in
``golang.org/x/time/rate``. A refused task reserves the time at which the bucket will have earned its cost, counted from
the latest reservation. So refused tasks come back one by one, find their tokens, and start in order.

Unlike a reservation of golang's, this one takes no tokens. It orders the tasks, and a task that comes back must still
acquire tokens. A fleet that was away for an hour cannot turn its old reservations into a burst.

A redelivered task carries its reservations in its ticket: see ``ticket.py``. A reservation is valid until
``RESERVATION_GRACE`` after its start time. A level whose bucket has been full for ``RESERVATION_TTL`` drops its
reservations, because no task came to use them. A task that finds the bucket full for ``LATE`` reserves that instant.

``store/lua/admit.lua``, ``cancel_reservation.lua`` and ``charge.lua`` mirror this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, replace

from bucketflow.algorithm.gcra import FULL, refund, take, tokens_at, wait_for
from bucketflow.limit import SECOND, Limit
from bucketflow_celery.config.levels import Level

__all__ = [
    "EMPTY",
    "LATE",
    "NO_DEADLINE",
    "RESERVATION_GRACE",
    "RESERVATION_TTL",
    "WAIVER",
    "AdmissionDecision",
    "AdmissionRequest",
    "LevelState",
    "admit",
    "cancel_reservation",
    "charge",
    "current_state",
]

#: µs after its start time at which a reservation lapses. A task that comes later gets a new one.
RESERVATION_GRACE = 60 * SECOND

#: µs by which a waiver precedes the reservation of the same task. :func:`cancel_reservation` recognises waivers by it.
WAIVER = 1

#: µs for which a bucket may be full while reservations are open. After that no task is expected, and they are dropped.
RESERVATION_TTL = 2 * SECOND

#: µs for which a bucket may be full until the tasks with reservations are late. A task that is refused then reserves
#: the instant at which these reservations will be dropped, instead of a time behind them.
LATE = SECOND // 4

#: Longest wait, in µs, of a task without a deadline: the largest integer up to which a double is exact.
NO_DEADLINE = 1 << 53


@dataclass(frozen=True, slots=True)
class LevelState:
    """
    The state of a level, as the store keeps it.

    Attributes:
        full_at: The bucket: the instant in µs at which it is full again.
        reserved_until: The latest reservation: a start time in µs; 0 if there is none.
        capacity: Capacity of the limit under which both were computed.
        fill_rate: Fill rate of that limit.
        debt_at: When the tokens are earned that were taken under all limits of late, in µs; 0 if *full_at* is later.
        debt_rate: The largest fill rate of these limits; 0 if there is no debt.

    Workers may differ in the limit of a level while a new configuration is deployed. Under the smallest limit the
    bucket is empty at worst, so *full_at* leaves out what a larger limit allowed beyond that capacity. The debt does
    not, so all workers together start no more than the largest limit allows.
    """

    full_at: float
    reserved_until: float
    capacity: float = 0.0
    fill_rate: float = 0.0
    debt_at: float = 0.0
    debt_rate: float = 0.0

    def missing(self, now: int) -> float:
        """Return the tokens that the bucket lacks at *now*, at most its capacity."""
        return min(self.capacity, max(0.0, self.full_at - now) * self.fill_rate / SECOND)

    def rebased_on(self, limit: Limit, now: int) -> LevelState:
        """
        Return the state under *limit*, which may differ from the limit under which it was computed.

        The tokens that were taken stay taken, but a bucket is never below empty: what is more becomes debt. The tokens
        ahead of the latest reservation stay the same number. Both durations are scaled to the new fill rate.
        """
        if self.capacity == limit.capacity and self.fill_rate == limit.fill_rate:
            return self
        full_at, reserved_until, debt_at, debt_rate = self.full_at, self.reserved_until, 0.0, 0.0
        owed = max((full_at - now) * self.fill_rate, (self.debt_at - now) * self.debt_rate)
        if owed > 0:
            full_at = now + min(owed / limit.fill_rate, limit.span)
            if owed / limit.fill_rate > limit.span:
                debt_rate = max(self.fill_rate, self.debt_rate, limit.fill_rate)
                debt_at = now + owed / debt_rate
        if reserved_until > now:
            reserved_until = now + (reserved_until - now) * (self.fill_rate / limit.fill_rate)
        return LevelState(full_at, reserved_until, limit.capacity, limit.fill_rate, debt_at, debt_rate)

    def taken(self, limit: Limit, now: int, cost: float) -> LevelState:
        """Return the state with *cost* tokens less, under *limit*."""
        full_at, debt_at, debt_rate = take(limit, self.full_at, now, cost), 0.0, 0.0
        if self.debt_at > now:
            debt_at, debt_rate = self.debt_at + cost * SECOND / self.debt_rate, self.debt_rate
        return LevelState(full_at, self.reserved_until, limit.capacity, limit.fill_rate, debt_at, debt_rate)

    def refunded(self, now: int, cost: float) -> LevelState:
        """Return the state with *cost* tokens more, at most up to the capacity."""
        full_at, debt_at = self.full_at, self.debt_at
        if full_at > now:
            full_at = refund(Limit(self.capacity, self.fill_rate), full_at, now, cost)
        if debt_at > now:
            debt_at = max(float(now), debt_at - cost * SECOND / self.debt_rate)
        return replace(self, full_at=full_at, debt_at=debt_at)


#: The state of an unused level: a full bucket without reservations.
EMPTY = LevelState(FULL, 0.0)


@dataclass(frozen=True, slots=True)
class AdmissionRequest:
    """
    One task that asks to start.

    Attributes:
        path: The levels that the task passes, root first; length >= 1.
        cost: Tokens that it takes from each level; above 0, at most the smallest capacity.
        reservations: Its start time at each level, in µs of the store's clock; 0 where it has none. Same length and
            order as *path*.
        max_wait_us: Longest remaining wait in µs. A task that would have to wait longer reserves nothing.
        backlog: Queue whose parked tasks it must not overtake; ``None`` if the task is not parked on refusal.
        tenant: Tenant of the task; ``""`` for none.
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
    The decision on one :class:`AdmissionRequest`: admitted, refused or skipped.

    A request is skipped, that is not evaluated, if one of its levels refused an earlier request of the same call and
    blocks the queue, or if it would overtake a parked task.

    Attributes:
        admitted: Whether the tokens were taken, at every level.
        binding: Index of the level with the longest wait; ``None`` if admitted or skipped.
        wait: µs until a retry may succeed; 0 if admitted or skipped.
        reservations: The reservations that the task has now, as in :class:`AdmissionRequest`.
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
    Decide *requests* in order, each as if it were alone, and update *states*.

    Once a level that blocks the queue has refused a task, later tasks of that level are skipped. Only the first of them
    needs a reservation.

    Args:
        requests: Length >= 0.
        states: State of each level by key; a missing key is an unused level.
        now: µs on the clock that stamped *states*.
        blocks: Whether a fresh task of this queue and tenant would overtake a parked one.

    Returns:
        One decision a request, same length and order.
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
    reservations = [0 if reservation < now - RESERVATION_GRACE else reservation for reservation in request.reservations]
    waits, current = [], []
    for index, level in enumerate(request.path):
        state = current_state(level, states, now)
        if reservations[index] > max(now, state.reserved_until):
            # This level did not grant it: it was lost, or the limit or the clock has changed since.
            reservations[index] = 0
        next_start = _next_start(level, state, request.cost)
        is_expired = next_start > now or (state.reserved_until and state.reserved_until + RESERVATION_TTL <= now)
        if is_expired and state.full_at + RESERVATION_TTL <= now:
            state, next_start = replace(state, reserved_until=0.0), 0.0
            states[level.key] = state
        elif next_start > now and state.full_at + LATE <= now:
            next_start = min(next_start, state.full_at + RESERVATION_TTL)
        current.append(state)
        until_start = (reservations[index] or next_start) - now
        waits.append(max(wait_for(level.limit, state.full_at, now, request.cost), math.ceil(until_start)))
    wait = max(waits)
    if wait <= 0:
        for level, state in zip(request.path, current, strict=True):
            states[level.key] = state.taken(level.limit, now, request.cost)
        return AdmissionDecision(admitted=True, binding=None, wait=0, reservations=tuple(reservations))
    binding = waits.index(wait)
    if wait <= request.max_wait_us:
        start = now + wait
        if _reserve(request.path, binding, waits, reservations, start):
            reserved_until = max(current[binding].reserved_until, float(start))
            states[request.path[binding].key] = replace(current[binding], reserved_until=reserved_until)
    return AdmissionDecision(admitted=False, binding=binding, wait=wait, reservations=tuple(reservations))


def current_state(level: Level, states: MutableMapping[str, LevelState], now: int) -> LevelState:
    """
    Return the state of *level* under its limit, and store it if that limit is a new one.

    It is stored at once because a bucket that every call rescales from the old state would never fill.
    """
    stored = states.get(level.key, EMPTY)
    state = stored.rebased_on(level.limit, now)
    if state is not stored and stored is not EMPTY:
        states[level.key] = state
    return state


def _next_start(level: Level, state: LevelState, cost: float) -> float:
    """Return the start time in µs behind all reservations of *level*; 0 if it has none."""
    # The task before leaves an empty bucket, which must gain the cost of this task.
    return state.reserved_until + cost * SECOND / level.limit.fill_rate if state.reserved_until else 0.0


def _reserve(path: tuple[Level, ...], binding: int, waits: list[int], reservations: list[int], start: int) -> bool:
    """
    Add what a refused task reserves to *reservations*; return whether the binding level is reserved until *start*.

    Only the level with the longest wait grants a reservation. A start time at another level would pass while the task
    still waits for the binding one. There the task gets a waiver: ``WAIVER`` before *start*. A waiver reserves no time,
    so it delays no other task. It overtakes none either: all start times reserved at that level are before *start*.
    """
    is_new = reservations[binding] == 0
    if is_new:
        reservations[binding] = start
    if not path[binding].blocks_queue:
        for index, level in enumerate(path):
            if not level.blocks_queue and waits[index] > 0 and reservations[index] == 0:
                reservations[index] = start - WAIVER
    return is_new


def cancel_reservation(request: AdmissionRequest, states: MutableMapping[str, LevelState], now: int) -> None:
    """Cancel the reservations in *request*. The level that granted one is reserved for that much less time."""
    latest = max(request.reservations)
    for level, reservation in zip(request.path, request.reservations, strict=True):
        state = states.get(level.key, EMPTY).rebased_on(level.limit, now)
        if reservation == latest > now and state.reserved_until > now:
            reserved_until = state.reserved_until - request.cost * SECOND / level.limit.fill_rate
            states[level.key] = replace(state, reserved_until=max(0.0, reserved_until))


def charge(costs: Sequence[tuple[Level, float]], states: MutableMapping[str, LevelState], now: int) -> None:
    """Take the tokens that were granted elsewhere, at each level its own number, or all that the bucket has."""
    for level, cost in costs:
        state = current_state(level, states, now)
        states[level.key] = state.taken(level.limit, now, min(cost, tokens_at(level.limit, state.full_at, now)))
