"""The buckets of one worker, by which it goes while the store is away: a share of each limit."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from bucketflow.limit import SECOND
from bucketflow_celery.config.levels import Level, ThrottlePolicy
from bucketflow_celery.config.limit import Limit
from bucketflow_celery.config.settings import Settings
from bucketflow_celery.scheduling.admit import AdmissionDecision, AdmissionRequest, LevelState, admit
from bucketflow_celery.store.circuit_breaker import FIRST_PAUSE, CircuitBreaker

__all__ = ["LocalLimits", "is_local"]

logger = logging.getLogger("bucketflow_celery.admission")

#: Begins the keys of all these buckets. No bucket of the store has such a key.
PREFIX = "local/"
#: Counts of workers that are remembered. The largest counts: after an outage the first count may miss some workers.
COUNTS = 3
#: Counts until the number of workers is known: by the second one, all others have seen this worker.
ENOUGH_COUNTS = 2
#: Relative rounding error of a share. With it, ten workers may each start a task of cost 1 under a capacity of 10.
ROUNDING = 1e-9


def is_local(key: str) -> bool:
    """Return whether *key* is that of a bucket of this worker. Its times are on the clock of this worker."""
    return key.startswith(PREFIX)


class LocalLimits:
    """
    Admission without the store, under ``on_store_error="local"``.

    The buckets begin empty, because the store has granted what they held. Their keys differ from outage to outage, so
    no reservation is taken for one of the store or of an earlier outage.

    Args:
        settings: The options in force.

    Attributes:
        on_store_error: The option. Other values than ``"local"`` leave these buckets inactive.
        is_active: Whether these buckets decide now.
    """

    def __init__(self, settings: Settings) -> None:
        self.on_store_error = settings.on_store_error
        self._local_share = settings.local_share
        self._quiet_time = settings.timeout + FIRST_PAUSE
        self._counts: deque[int] = deque(maxlen=COUNTS)
        self._outages = 0
        self._share = 1.0
        self._began_at = 0
        self._levels: dict[Level, Level] = {}
        self._states: dict[str, LevelState] = {}
        self._has_warned = False
        self.is_active = False

    @property
    def share(self) -> float | None:
        """The share of each limit that this worker has; ``None`` while the number of workers is unknown."""
        if self._local_share is not None:
            return self._local_share
        return 1 / max(self._counts) if len(self._counts) >= ENOUGH_COUNTS else None

    def record_workers(self, count: int) -> None:
        """Record that the store has seen *count* workers, this one included."""
        self._counts.append(max(1, count))

    def prepare(self, breaker: CircuitBreaker) -> None:
        """Begin with a new connection to the store, which has *breaker*."""
        self.is_active = False
        if self.on_store_error == "local":
            # All workers must notice within the quiet time that the store answers again.
            breaker.longest_pause = FIRST_PAUSE

    def follow(self, breaker: CircuitBreaker, now: float) -> bool:
        """
        Begin or end, as *breaker* says; return whether one of them.

        At the end the store is not asked for a quiet time. After that no worker goes by its own buckets any more.
        """
        is_away, share = breaker.pause > 0, self.share
        if self.is_active and not is_away:
            self.is_active = False
            breaker.open_until = now + self._quiet_time
            return True
        if self.is_active or not is_away or share is None or self.on_store_error != "local":
            return False
        self.is_active = True
        self._outages += 1
        self._share, self._began_at, self._has_warned = share, _micros(now), False
        self._levels.clear()
        self._states.clear()
        logger.warning("this worker starts tasks by its own buckets until the store answers: share=%.4g", share)
        return True

    def localized(self, policy: ThrottlePolicy) -> ThrottlePolicy | None:
        """
        Return *policy* with the levels of this worker, whose refusals are held here.

        ``None``: the cost is above the capacity of one of them. Only the store can grant it.
        """
        path = tuple([level if is_local(level.key) else self._level(level) for level in policy.path])
        beyond = next((level for level in path if policy.cost > level.limit.capacity), None)
        if beyond is None:
            return replace(policy, path=path, on_limit="hold")
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "tasks whose cost is above this worker's share of a capacity wait until the store answers: "
                "key=%s cost=%g capacity=%g",
                beyond.key,
                policy.cost,
                beyond.limit.capacity,
            )
        return None

    def admit(self, requests: Sequence[AdmissionRequest], now: float) -> list[AdmissionDecision]:
        """Decide *requests* of localized tasks at *now*, in seconds: see :func:`~..scheduling.admit.admit`."""
        for level in {level for request in requests for level in request.path}:
            limit = level.limit
            empty = LevelState(self._began_at + limit.span, 0.0, limit.capacity, limit.fill_rate)
            self._states.setdefault(level.key, empty)
        return admit(requests, self._states, _micros(now))

    def _level(self, level: Level) -> Level:
        local = self._levels.get(level)
        if local is None:
            capacity, fill_rate = (
                level.limit.capacity * self._share * (1 + ROUNDING),
                level.limit.fill_rate * self._share,
            )
            key = f"{PREFIX}{self._outages}/{level.key}"
            local = self._levels[level] = Level(level.name, key, Limit(capacity, fill_rate, level.limit.shared))
        return local


def _micros(seconds: float) -> int:
    return int(seconds * SECOND)
