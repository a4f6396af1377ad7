"""An estimate of how long a message at the end of a queue takes to be delivered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["QueueingDelay"]

#: Seconds for which an estimate is valid.
SAMPLE_INTERVAL = 0.5
#: Longest time in seconds over which the deliveries of this worker tell its speed.
MAX_SAMPLE_AGE = 5.0
#: Assumed seconds for one message while the speed of this worker is unknown.
SECONDS_PER_MESSAGE = 0.01
#: Most seconds for one message.
MAX_SECONDS_PER_MESSAGE = 0.1
#: Assumed seconds to publish a copy, before the first one.
SECONDS_PER_COPY = 0.002
#: How much of the latest time to publish goes into the average.
SMOOTHING = 0.1


@dataclass(frozen=True, slots=True)
class _Sample:
    """
    The estimate for one queue.

    Attributes:
        at: When it was made, in seconds of the monotonic clock.
        delivered: How many messages of the queue this worker had received by then.
        delay: The estimate in seconds.
    """

    at: float
    delivered: int
    delay: float


class QueueingDelay:
    """
    Multiplies the messages that wait in a queue by the seconds that this worker takes for one.

    A worker takes longer for a message once it must publish a copy, so the time of that is added. Other workers of the
    queue make the real delay shorter.

    Args:
        count: Returns the number of messages that wait in a queue.
        delivered: Returns the number of messages of a queue that this worker has received.
        monotonic: Returns the time in seconds.
    """

    def __init__(
        self, count: Callable[[str], int], delivered: Callable[[str], int], monotonic: Callable[[], float]
    ) -> None:
        self._count = count
        self._delivered = delivered
        self._monotonic = monotonic
        self._samples: dict[str, _Sample] = {}
        self._seconds_per_copy = SECONDS_PER_COPY

    def record_copy(self, seconds: float) -> None:
        """Record that this worker has taken *seconds* to publish a copy."""
        self._seconds_per_copy += SMOOTHING * (seconds - self._seconds_per_copy)

    def of(self, queue: str) -> float:
        """Return the estimate in seconds for *queue*."""
        now, sample = self._monotonic(), self._samples.get(queue)
        if sample is None or now - sample.at >= SAMPLE_INTERVAL:
            sample = self._samples[queue] = self._sampled(queue, now, sample)
        return sample.delay

    def _sampled(self, queue: str, now: float, last: _Sample | None) -> _Sample:
        seconds, delivered = SECONDS_PER_MESSAGE, self._delivered(queue)
        if last is not None and now - last.at <= MAX_SAMPLE_AGE:
            seconds = (now - last.at) / max(1, delivered - last.delivered)
            seconds = min(seconds, MAX_SECONDS_PER_MESSAGE)  # longer: it was not receiving all the time
        return _Sample(now, delivered, self._count(queue) * (seconds + self._seconds_per_copy))
