"""Common base of the thread and asyncio buckets: everything but the waiting."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Final

from bucketflow.algorithm.gcra import FULL, Decision, burst_tolerance, initial_state, take
from bucketflow.algorithm.wait_queue import Waiter, WaitQueue
from bucketflow.clock import SYSTEM_CLOCK, fast_reader
from bucketflow.fork import reset_after_fork
from bucketflow.limit import SECOND, Limit
from bucketflow.local.fast_path import FastPathState, popping
from bucketflow.process_bound import USE_REDIS, ProcessBound
from bucketflow.validation import check_cost

if TYPE_CHECKING:
    from bucketflow.clock import Clock

__all__ = ["Bucket", "Reservation"]


class Bucket(ProcessBound):
    """A :class:`~bucketflow.algorithm.wait_queue.WaitQueue`, a lock and a clock. No caller sleeps under the lock."""

    _instead = USE_REDIS

    #: Name of the bucket in errors if it was given none.
    _KIND = "bucket"

    def __init__(
        self,
        capacity: float,
        fill_rate: float,
        initial_tokens: float | None = None,
        *,
        clock: Clock = SYSTEM_CLOCK,
        name: str | None = None,
    ) -> None:
        self.limit: Final = Limit(capacity, fill_rate)
        self.name: Final = name
        self._clock = clock
        self._now = clock.now
        self._queue = WaitQueue(self.limit, initial_state(self.limit, initial_tokens, clock.now()))
        self._lock = threading.Lock()
        self._state = FastPathState(self._queue)
        # What the fast path of consume needs, computed once: the cost that needs no check, the µs in which it refills,
        # the state, the time, the limit. Below a capacity of 1 every cost is checked: no caller has that object.
        unchecked: object = 1 if self.limit.capacity >= 1 else object()
        slot = self._state.slot
        self._fast_path = (
            unchecked,
            1.0 * SECOND / self.limit.fill_rate,
            popping(slot),
            slot,
            *fast_reader(clock),
            burst_tolerance(self.limit),
        )
        reset_after_fork(self)

    def after_fork(self) -> None:
        """Drop the lock and all waiters: in a forked child their threads do not exist."""
        self._lock = threading.Lock()
        self._queue.waiters = []
        self._state.after_fork(take(self.limit, FULL, self._now(), self.limit.capacity))

    @property
    def capacity(self) -> float:
        """Most tokens the bucket holds."""
        return self.limit.capacity

    @property
    def fill_rate(self) -> float:
        """Tokens per second."""
        return self.limit.fill_rate

    def try_consume(self, tokens: float = 1) -> Decision:
        """
        Take *tokens* without waiting, and return the decision with its details.

        Args:
            tokens: Tokens to take, >= 0; 0 takes none and reports the state.

        Returns:
            The decision. Its ``retry_after``, in seconds, includes all callers that already wait.

        Raises:
            ConfigError: *tokens* is not a number of 0 or more.
            CostExceedsCapacity: *tokens* is above the capacity.
        """
        cost = self._cost(tokens)
        with self._lock, self._state as queue:
            now = self._now()
            allowed = queue.consume(now, cost)
            wait = 0 if allowed else queue.wait(now, cost)
            return Decision(allowed, wait / SECOND, None if allowed else 0, (queue.tokens(now),))

    def wait_time(self, tokens: float = 1) -> float:
        """
        Return the seconds until *tokens* could be taken, behind all callers that already wait; 0 if now.

        Takes no tokens and reserves none, see :meth:`reserve`. Raises the same errors as :meth:`try_consume`.
        """
        cost = self._cost(tokens)
        with self._lock, self._state as queue:
            return queue.wait(self._now(), cost) / SECOND

    def reserve(self, tokens: float = 1) -> Reservation:
        """
        Reserve *tokens* behind all callers that already wait, without blocking.

        The caller can do other work until the reservation is ready, or cancel it. Raises the same errors as
        :meth:`try_consume`.

        Returns:
            The reservation. The tokens may be used once it is ``ready``.
        """
        waiter = Waiter(self._cost(tokens), _do_not_wake, reserved=True)
        with self._lock, self._state as queue:
            queue.join(waiter, self._now())
        return Reservation(self, waiter)

    def refund(self, tokens: float = 1) -> None:
        """
        Return *tokens* that were taken but not used. Waiting callers move up.

        Tokens above the capacity are lost. Raises the same errors as :meth:`try_consume`.
        """
        cost = self._cost(tokens)
        with self._lock, self._state as queue:
            moved_up = queue.refund(self._now(), cost)
        _wake(moved_up)

    def _cost(self, tokens: float) -> float:
        return check_cost(tokens, self.limit.capacity, self.name or self._KIND)

    def _refill_time(self, tokens: float) -> float:
        """Check *tokens* and return the µs in which they refill."""
        limit = self.limit
        return check_cost(tokens, limit.capacity, self.name or self._KIND) * SECOND / limit.fill_rate

    def _consume(self, cost: float) -> bool:
        """Take *cost* tokens under the lock. Return whether they were there."""
        with self._lock, self._state as queue:
            return queue.consume(self._now(), cost)

    def _tokens(self) -> float:
        with self._lock, self._state as queue:
            return queue.tokens(self._now())

    def _join(self, waiter: Waiter, timeout: float | None) -> int | None:
        """Append *waiter* to the queue unless it would wait longer than *timeout*. Return its deadline in µs."""
        with self._lock, self._state as queue:
            now = self._now()
            deadline = None if timeout is None else now + round(timeout * SECOND)
            if deadline is None or now + queue.wait(now, waiter.cost) <= deadline:
                queue.join(waiter, now)
            else:
                waiter.due_at = deadline + 1
        return deadline

    def _time_left(self, waiter: Waiter, deadline: int | None) -> float | None:
        """Return the seconds until *waiter* is due; ``None`` if it is granted, or will not be by *deadline*."""
        with self._lock, self._state as queue:
            now = self._now()
            queue.grant_due(now)
            if waiter.granted or (deadline is not None and waiter.due_at > deadline):
                return None
            return (waiter.due_at - now) / SECOND

    def _cancel(self, waiter: Waiter) -> None:
        """Remove *waiter* from the queue. If it was granted, refund its tokens."""
        with self._lock, self._state as queue:
            moved_up = queue.cancel(waiter, self._now())
        _wake(moved_up)

    def _cancel_unless_granted(self, waiter: Waiter) -> bool:
        """Remove *waiter* from the queue. Return False if it is granted: its tokens stay spent."""
        with self._lock, self._state as queue:
            now = self._now()
            queue.grant_due(now)
            if waiter.granted:
                return False
            moved_up = queue.cancel(waiter, now)
        _wake(moved_up)
        return True


class Reservation(ProcessBound):
    """
    Tokens reserved by :meth:`Bucket.reserve`.

    Use them once the reservation is :attr:`ready`. After sleeping for :attr:`wait`, check again: the grant time moves
    earlier when a waiter ahead leaves the queue, and later when a waiter ahead was granted late.
    """

    __slots__ = ("_bucket", "_cancelled", "_waiter")

    _instead = "reserve in the process that uses the tokens"

    def __init__(self, bucket: Bucket, waiter: Waiter) -> None:
        self._bucket = bucket
        self._waiter = waiter
        self._cancelled = False

    @property
    def wait(self) -> float:
        """Seconds left until the tokens are there; 0 once they are, infinity once cancelled."""
        if self._cancelled:
            return math.inf
        return self._bucket._time_left(self._waiter, None) or 0.0  # noqa: SLF001 - the other half of the same object

    @property
    def ready(self) -> bool:
        """Whether the tokens are there, and taken."""
        return self.wait == 0

    def cancel(self) -> bool:
        """
        Cancel the reservation. Callers behind it move up.

        Returns:
            Whether it was cancelled. A reservation that is :attr:`ready` is spent and is not cancelled. If its tokens
            are not used, :meth:`~Bucket.refund` returns them.
        """
        if self._cancelled or not self._bucket._cancel_unless_granted(self._waiter):  # noqa: SLF001 - see wait
            return False
        self._cancelled = True
        return True


def _do_not_wake() -> None:
    """Do nothing: no thread sleeps for a reservation, its holder polls it."""


def _wake(waiters: list[Waiter]) -> None:
    for waiter in waiters:
        waiter.wake()
