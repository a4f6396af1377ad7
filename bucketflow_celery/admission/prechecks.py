"""What becomes of a task before the store is asked about it, where that is known: only the others must ask."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from bucketflow.errors import CostExceedsCapacity
from bucketflow_celery.admission.actions import Handling
from bucketflow_celery.admission.hold_queues import Lines
from bucketflow_celery.admission.interfaces import NoParking, Parking
from bucketflow_celery.admission.pending_task import Entry
from bucketflow_celery.config.levels import Level, check_cost
from bucketflow_celery.store.circuit_breaker import Outage

__all__ = ["Triage"]

#: Seconds after which a task of a paused tenant that was sent back comes again.
PAUSE = 5.0
#: Most levels remembered as dry.
MOST_DRY = 10_000
#: Keys of the lines of those who wait for the store itself, to be parked, and for the end of a pause.
STORE, FULL, PAUSED = "", " full", " paused"


class Triage:
    """
    Sorts those who want to start.

    Args:
        lines: Where those wait who stay in this worker.
        handling: Does to each of them what was decided.
        outage: What to do while the store is away.
        monotonic: Returns the worker's time, in seconds.

    Attributes:
        room: Where tasks are parked.
    """

    def __init__(self, lines: Lines, handling: Handling, outage: Outage, monotonic: Callable[[], float]) -> None:
        self._lines = lines
        self._handling = handling
        self._outage = outage
        self._monotonic = monotonic
        self._dry_until: dict[str, float] = {}  # of levels, by key, as those were told who were then parked
        self.room: Parking = NoParking()

    def can_start(self, entry: Entry) -> bool:
        """Return whether *entry* can ever start under these limits; if not, it has failed."""
        if self._may_be_parked(entry):
            return True  # it may have run under other limits: only parking it can tell, and fails it at its turn
        try:
            check_cost(entry.passage.path, entry.passage.cost)
        except CostExceedsCapacity as error:
            self._handling.give_up(entry, error)
            return False
        return True

    def must_ask(self, entry: Entry, now: float) -> bool:
        """Return whether the store decides about *entry*; if not, that is done."""
        passage = entry.passage
        if self._may_be_parked(entry):
            self.park(entry)
        elif passage.paused is not None:
            self._pause(entry)
        elif not passage.path:
            self._handling.start(entry)
        elif self._outage.until > now:
            self.without_store(entry)
        elif passage.parks and self.blocks(entry, now):
            self.park(entry)
        elif not passage.parks and (blocked := self._lines.blocking(passage.path)) is not None:
            self._handling.join(entry, blocked)
        else:
            return True
        return False

    def blocks(self, entry: Entry, now: float) -> bool:
        """Return whether *entry* would wait in any case: for its tenant's backlog, or for a level that told when."""
        if self.room.blocks(entry):
            return True
        if entry.passage.max_wait is not None:
            return False  # only an answer tells whether that would be too long; then it fails at once
        return any(self._dry_until.get(level.key, now) > now for level in entry.passage.path)

    def note_dry(self, level: Level, seconds: float) -> None:
        """Take note that *level* will have no tokens for so many seconds."""
        if len(self._dry_until) >= MOST_DRY:
            self._dry_until.clear()
        self._dry_until[level.key] = self._monotonic() + seconds

    def forget(self) -> None:
        """Forget which levels are dry: other limits are in force."""
        self._dry_until.clear()

    def park(self, entry: Entry) -> None:
        """Let *entry* be parked."""
        self._handling.waited(entry)
        self.room.add(entry)

    def keep(self, entry: Entry, seconds: float) -> None:
        """Hold an entry that could not be parked, for so many seconds."""
        if not self.can_start(entry):
            return  # it cannot be parked at all, so it was not
        entry.ready_at = self._monotonic() + seconds
        self._handling.join(entry, self._lines.of(FULL, None))

    def without_store(self, entry: Entry) -> None:
        """Do with *entry* what is to be done while the store is away."""
        if self._outage.policy == "admit":
            self._handling.start(entry)
        elif self._outage.policy != "refuse" or not self._handling.send_back(entry, max(1.0, self._outage.pause)):
            entry.ready_at = self._outage.until
            self._handling.join(entry, self._lines.of(STORE, None))

    def _may_be_parked(self, entry: Entry) -> bool:
        return entry.passage.parks and self.room.may_have(entry)

    def _pause(self, entry: Entry) -> None:
        if entry.passage.parks:
            self.park(entry)
        elif entry.passage.paused in ("all", "queue") or not self._handling.send_back(entry, PAUSE):
            entry.ready_at = inf  # until other limits are in force
            self._handling.join(entry, self._lines.of(PAUSED, None))
