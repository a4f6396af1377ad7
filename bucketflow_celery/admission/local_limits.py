"""The buckets of one worker, by which it goes while the store is away: a share of each limit."""

from __future__ import annotations

import logging
from collections import defaultdict, deque
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
#: Most levels that the store is charged for in one call.
MAX_CHARGES = 500
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
        self._granted: defaultdict[Level, float] = defaultdict(float)
        self._owed: list[tuple[Level, float]] = []
        self._quiet_until = 0.0
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
        """Follow another connection to the store, which has *breaker*. An outage that has begun goes on."""
        if self.on_store_error == "local":
            # All workers must notice within the quiet time that the store answers again.
            breaker.longest_pause = FIRST_PAUSE

    def follow(self, breaker: CircuitBreaker, now: float) -> bool:
        """
        Begin or end, as *breaker* says; return whether one of them.

        At the end the store is asked for nothing for a quiet time. After that no worker goes by its own buckets any
        more, and the store knows what they have granted.
        """
        is_away, share = breaker.pause > 0, self.share
        if not is_away:
            was_active, self.is_active = self.is_active, False
            if was_active:
                self._quiet_until = now + self._quiet_time
                self._owed = self._missing(now)
            breaker.open_until = max(breaker.open_until, self._quiet_until)
            return was_active
        if self.is_active or share is None or self.on_store_error != "local":
            return False
        self.is_active = True
        self._outages += 1
        self._share, self._began_at, self._has_warned = share, _micros(now), False
        self._levels.clear()
        self._states.clear()
        self._granted.clear()
        self._owed = []
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
        decisions = admit(requests, self._states, _micros(now))
        for request, decision in zip(requests, decisions, strict=True):
            for level in request.path if decision.admitted else ():
                self._granted[level] += request.cost
        return decisions

    def take_owed(self) -> list[tuple[Level, float]]:
        """Return some levels of the store and the tokens to charge them with, once; none if all are charged."""
        owed, self._owed = self._owed[:MAX_CHARGES], self._owed[MAX_CHARGES:]
        return owed

    def _missing(self, now: float) -> list[tuple[Level, float]]:
        """
        Return what these buckets lack at *now* of what they have granted, by level of the store.

        What they have earned back since needs no charge: the buckets of the store have earned as much.
        """
        found = []
        for level, local in self._levels.items():
            if local in self._granted:
                missing = self._states[local.key].missing(_micros(now))
                found.append((level, min(self._granted[local], missing)))
        return [(level, missing) for level, missing in found if missing > 0]

    def _level(self, level: Level) -> Level:
        local = self._levels.get(level)
        if local is None:
            capacity, fill_rate = level.limit.capacity * (1 + ROUNDING), level.limit.fill_rate
            limit = Limit(capacity * self._share, fill_rate * self._share, level.limit.shared)
            local = self._levels[level] = Level(level.name, f"{PREFIX}{self._outages}/{level.key}", limit)
        return local


def _micros(seconds: float) -> int:
    return int(seconds * SECOND)
