"""What the buckets of threads and of coroutines have in common: everything but the waiting."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Final

from bucketflow.algorithm.gcra import Decision, burst_tolerance, initial_state
from bucketflow.algorithm.wait_queue import Waiter, WaitQueue
from bucketflow.clock import SYSTEM_CLOCK, fast_reader
from bucketflow.limit import SECOND, Limit
from bucketflow.local.fast_path import SlowPath, popping
from bucketflow.validation import check_cost

if TYPE_CHECKING:
    from bucketflow.clock import Clock

__all__ = ["Bucket", "Reservation"]


class Bucket:
    """
    A :class:`~bucketflow.algorithm.wait_queue.WaitQueue`, a lock and a clock.

    The lock is never held while anybody sleeps.
    """

    #: How the bucket is called in errors when it was given no name.
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
        self._slow_path = SlowPath(self._queue)
        # What the quick way of consume needs, worked out once: the cost that needs no check and its µs, the state, the
        # time, the limit. Below a capacity of 1 there is no such cost: nobody has that object.
        one: object = 1 if capacity >= 1 else object()
        slot = self._queue.slot
        self._fast_path = (
            one,
            1.0 * SECOND / fill_rate,
            popping(slot),
            slot,
            *fast_reader(clock),
            burst_tolerance(self.limit),
        )

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
        Take *tokens* now or not at all, and say what there was to say.

        Args:
            tokens: How many; 0 only looks.

        Returns:
            The decision. Its ``retry_after``, in seconds, counts everybody who waits already.

        Raises:
            ConfigError: *tokens* is no number of 0 or more.
            CostExceedsCapacity: More than the bucket can ever hold.
        """
        cost = self._cost(tokens)
        with self._lock, self._slow_path as queue:
            now = self._now()
            allowed = queue.consume(now, cost)
            wait = 0 if allowed else queue.wait(now, cost)
            return Decision(allowed, wait / SECOND, None if allowed else 0, (queue.tokens(now),))

    def wait_time(self, tokens: float = 1) -> float:
        """
        Return the seconds until *tokens* could be taken, behind everybody who waits already; 0 if now.

        Takes nothing and holds no place: for that there is :meth:`reserve`. Raises as :meth:`try_consume` does.
        """
        cost = self._cost(tokens)
        with self._lock, self._slow_path as queue:
            return queue.wait(self._now(), cost) / SECOND

    def reserve(self, tokens: float = 1) -> Reservation:
        """
        Take a place in the line now, to act when its time has come. Raises as :meth:`try_consume` does.

        For those who cannot, or need not, block: look at ``wait``, do something else meanwhile, or think better of
        it and ``cancel()``.
        """
        waiter = Waiter(self._cost(tokens), _nobody_sleeps, promised=True)
        with self._lock, self._slow_path as queue:
            queue.join(waiter, self._now())
        return Reservation(self, waiter)

    def refund(self, tokens: float = 1) -> None:
        """
        Give back *tokens* that were taken but not used; those who wait move up.

        A bucket never holds more than its capacity: what would be above it is gone. Raises as :meth:`try_consume`.
        """
        cost = self._cost(tokens)
        with self._lock, self._slow_path as queue:
            nearer = queue.refund(self._now(), cost)
        _wake(nearer)

    def _cost(self, tokens: float) -> float:
        return check_cost(tokens, self.limit.capacity, self.name or self._KIND)

    def _step_of(self, tokens: float) -> float:
        """Return the µs in which *tokens* come, once they are found to be a cost."""
        limit = self.limit
        return check_cost(tokens, limit.capacity, self.name or self._KIND) * SECOND / limit.fill_rate

    def _consume(self, cost: float) -> bool:
        """Take *cost* tokens, or say that they are not there, when the quick way was closed."""
        with self._lock, self._slow_path as queue:
            return queue.consume(self._now(), cost)

    def _tokens(self) -> float:
        with self._lock, self._slow_path as queue:
            return queue.tokens(self._now())

    def _join(self, waiter: Waiter, timeout: float | None) -> int | None:
        """Put *waiter* in the line unless it would wait longer than *timeout*. Return the last µs it may wait until."""
        with self._lock, self._slow_path as queue:
            now = self._now()
            deadline = None if timeout is None else now + round(timeout * SECOND)
            if deadline is None or now + queue.wait(now, waiter.cost) <= deadline:
                queue.join(waiter, now)
            else:
                waiter.at = deadline + 1
        return deadline

    def _left(self, waiter: Waiter, deadline: int | None) -> float | None:
        """Return the seconds until *waiter* is due; ``None`` if it was granted, or will not be by *deadline*."""
        with self._lock, self._slow_path as queue:
            now = self._now()
            queue.grant_due(now)
            if waiter.granted or (deadline is not None and waiter.at > deadline):
                return None
            return (waiter.at - now) / SECOND

    def _cancel(self, waiter: Waiter) -> bool:
        """Give the place of *waiter* back, if it still has one."""
        with self._lock, self._slow_path as queue:
            now = self._now()
            queue.grant_due(now)
            if waiter.granted:
                return False
            nearer = queue.cancel(waiter, now)
        _wake(nearer)
        return True

    def _abandon(self, waiter: Waiter) -> None:
        with self._lock, self._slow_path as queue:
            nearer = queue.cancel(waiter, self._now())
        _wake(nearer)


class Reservation:
    """
    A place in a bucket's line, from :meth:`Bucket.reserve`.

    Act once :attr:`ready`. After sleeping for :attr:`wait`, look again: the instant comes nearer when somebody ahead
    leaves the line, and moves away when somebody ahead started late.
    """

    __slots__ = ("_bucket", "_cancelled", "_waiter")

    def __init__(self, bucket: Bucket, waiter: Waiter) -> None:
        self._bucket = bucket
        self._waiter = waiter
        self._cancelled = False

    @property
    def wait(self) -> float:
        """Seconds left until the tokens are there; 0 once they are, infinity once cancelled."""
        if self._cancelled:
            return math.inf
        return self._bucket._left(self._waiter, None) or 0.0  # noqa: SLF001 - the other half of the same object

    @property
    def ready(self) -> bool:
        """Whether the tokens are there, and taken."""
        return self.wait == 0

    def cancel(self) -> bool:
        """
        Give the place back; those behind it move up.

        Returns:
            Whether there was anything to give back. Once :attr:`ready` there is not: the tokens are spent, and only
            who knows that they were not used may :meth:`~Bucket.refund` them.
        """
        if self._cancelled or not self._bucket._cancel(self._waiter):  # noqa: SLF001 - see wait
            return False
        self._cancelled = True
        return True


def _nobody_sleeps() -> None:
    """Wake nobody: who holds a reservation looks for himself."""


def _wake(waiters: list[Waiter]) -> None:
    for waiter in waiters:
        waiter.wake()
