"""What the buckets of threads and of coroutines have in common: everything but the waiting."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Final

from bucketflow.algorithm.gcra import Decision, filled_to, most_behind
from bucketflow.algorithm.wait_queue import Claim, Line
from bucketflow.clock import SYSTEM_CLOCK, raw
from bucketflow.limit import SECOND, Limit
from bucketflow.local.fast_path import Closed, taking
from bucketflow.validation import check_cost

if TYPE_CHECKING:
    from bucketflow.clock import Clock

__all__ = ["Bucket", "Reservation"]


class Bucket:
    """
    A :class:`~bucketflow.algorithm.wait_queue.Line`, a lock and a clock.

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
        self._line = Line(self.limit, filled_to(self.limit, initial_tokens, clock.now()))
        self._lock = threading.Lock()
        self._closed = Closed(self._line)
        # What the quick way of consume needs, worked out once: the cost that needs no check and its µs, the state, the
        # time, the limit. Below a capacity of 1 there is no such cost: nobody has that object.
        one: object = 1 if capacity >= 1 else object()
        idle = self._line.idle
        self._quick = (one, 1.0 * SECOND / fill_rate, taking(idle), idle, *raw(clock), most_behind(self.limit))

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
        with self._lock, self._closed as line:
            now = self._now()
            allowed = line.consume(now, cost)
            wait = 0 if allowed else line.wait(now, cost)
            return Decision(allowed, wait / SECOND, None if allowed else 0, (line.tokens(now),))

    def wait_time(self, tokens: float = 1) -> float:
        """
        Return the seconds until *tokens* could be taken, behind everybody who waits already; 0 if now.

        Takes nothing and holds no place: for that there is :meth:`reserve`. Raises as :meth:`try_consume` does.
        """
        cost = self._cost(tokens)
        with self._lock, self._closed as line:
            return line.wait(self._now(), cost) / SECOND

    def reserve(self, tokens: float = 1) -> Reservation:
        """
        Take a place in the line now, to act when its time has come. Raises as :meth:`try_consume` does.

        For those who cannot, or need not, block: look at ``wait``, do something else meanwhile, or think better of
        it and ``cancel()``.
        """
        claim = Claim(self._cost(tokens), _nobody_sleeps, promised=True)
        with self._lock, self._closed as line:
            line.join(claim, self._now())
        return Reservation(self, claim)

    def refund(self, tokens: float = 1) -> None:
        """
        Give back *tokens* that were taken but not used; those who wait move up.

        A bucket never holds more than its capacity: what would be above it is gone. Raises as :meth:`try_consume`.
        """
        cost = self._cost(tokens)
        with self._lock, self._closed as line:
            nearer = line.refund(self._now(), cost)
        _wake(nearer)

    def _cost(self, tokens: float) -> float:
        return check_cost(tokens, self.limit.capacity, self.name or self._KIND)

    def _step_of(self, tokens: float) -> float:
        """Return the µs in which *tokens* come, once they are found to be a cost."""
        limit = self.limit
        return check_cost(tokens, limit.capacity, self.name or self._KIND) * SECOND / limit.fill_rate

    def _consume(self, cost: float) -> bool:
        """Take *cost* tokens, or say that they are not there, when the quick way was closed."""
        with self._lock, self._closed as line:
            return line.consume(self._now(), cost)

    def _tokens(self) -> float:
        with self._lock, self._closed as line:
            return line.tokens(self._now())

    def _join(self, claim: Claim, timeout: float | None) -> int | None:
        """Put *claim* in the line unless it would wait longer than *timeout*. Return the last µs it may wait until."""
        with self._lock, self._closed as line:
            now = self._now()
            deadline = None if timeout is None else now + round(timeout * SECOND)
            if deadline is None or now + line.wait(now, claim.cost) <= deadline:
                line.join(claim, now)
            else:
                claim.at = deadline + 1
        return deadline

    def _left(self, claim: Claim, deadline: int | None) -> float | None:
        """Return the seconds until *claim* is due; ``None`` if it was granted, or will not be by *deadline*."""
        with self._lock, self._closed as line:
            now = self._now()
            line.settle(now)
            if claim.granted or (deadline is not None and claim.at > deadline):
                return None
            return (claim.at - now) / SECOND

    def _cancel(self, claim: Claim) -> bool:
        """Give the place of *claim* back, if it still has one."""
        with self._lock, self._closed as line:
            now = self._now()
            line.settle(now)
            if claim.granted:
                return False
            nearer = line.abandon(claim, now)
        _wake(nearer)
        return True

    def _abandon(self, claim: Claim) -> None:
        with self._lock, self._closed as line:
            nearer = line.abandon(claim, self._now())
        _wake(nearer)


class Reservation:
    """
    A place in a bucket's line, from :meth:`Bucket.reserve`.

    Act once :attr:`ready`. After sleeping for :attr:`wait`, look again: the instant comes nearer when somebody ahead
    leaves the line, and moves away when somebody ahead started late.
    """

    __slots__ = ("_bucket", "_cancelled", "_claim")

    def __init__(self, bucket: Bucket, claim: Claim) -> None:
        self._bucket = bucket
        self._claim = claim
        self._cancelled = False

    @property
    def wait(self) -> float:
        """Seconds left until the tokens are there; 0 once they are, infinity once cancelled."""
        if self._cancelled:
            return math.inf
        return self._bucket._left(self._claim, None) or 0.0  # noqa: SLF001 - the other half of the same object

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
        if self._cancelled or not self._bucket._cancel(self._claim):  # noqa: SLF001 - see wait
            return False
        self._cancelled = True
        return True


def _nobody_sleeps() -> None:
    """Wake nobody: who holds a reservation looks for himself."""


def _wake(claims: list[Claim]) -> None:
    for claim in claims:
        claim.wake()
