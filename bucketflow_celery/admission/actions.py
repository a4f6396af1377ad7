"""What is done with one task at the gate: it starts, waits here, returns to the broker, or is given up."""

from __future__ import annotations

from typing import Any

from bucketflow.errors import BucketflowError
from bucketflow_celery.admission.hold_queues import Line
from bucketflow_celery.admission.interfaces import Host
from bucketflow_celery.admission.pending_task import Entry
from bucketflow_celery.admission.refusal import GiveUp, Hold, decide, too_long
from bucketflow_celery.config.levels import Level
from bucketflow_celery.stats import Stats

__all__ = ["Handling"]


class Handling:
    """
    Acts on tasks, and counts.

    Args:
        host: The worker.
        stats: Where to count.
        max_countdown: Longest countdown, in seconds.
    """

    def __init__(self, host: Host, stats: Stats, max_countdown: float) -> None:
        self._host = host
        self._stats = stats
        self._max_countdown = max_countdown

    def start(self, entry: Entry) -> None:
        """Run it in a free slot."""
        self.leave(entry)
        self._stats.admitted += 1
        self._host.start(entry)

    def fail(self, request: Any, error: BucketflowError) -> None:
        """Give it up, with *error* as its result."""
        self._stats.failed += 1
        self._host.fail(request, error)

    def give_up(self, entry: Entry, error: BucketflowError) -> None:
        """Let it wait no more: see :meth:`fail`."""
        self.leave(entry)
        self.fail(entry.request, error)

    def give_back(self, entry: Entry) -> bool:
        """Leave it to the broker, for any worker; ``False`` if it must stay here."""
        if not self._host.give_back(entry):
            return False
        self._stats.given_back += 1
        self.leave(entry)
        return True

    def is_gone(self, entry: Entry) -> bool:
        """Return whether it was revoked or has expired; it has left then."""
        gone = self._host.is_gone(entry)
        if gone:
            self.leave(entry)
        return gone

    def leave(self, entry: Entry) -> None:
        """Take note that it does not wait here any more."""
        if entry.held:
            entry.held = False
            self._host.unhold(entry)

    def send_back(self, entry: Entry, countdown: float) -> bool:
        """Send it to the broker, to come again in *countdown* seconds; ``False`` if the broker did not take it."""
        self.waited(entry)
        if not self._host.send_back(entry, countdown):
            return False
        self._stats.returned += 1
        self.leave(entry)
        return True

    def waited(self, entry: Entry) -> float:
        """Return the seconds since it was first held up, which is now if it never was."""
        now = self._host.time()
        if entry.since is None:
            entry.since = now
        return max(0.0, now - entry.since)

    def join(self, entry: Entry, line: Line) -> None:
        """Let it wait in *line*, unless that would be too long."""
        wait = line.wait_ahead(self._host.monotonic())
        waited = self.waited(entry)
        if line.level is not None and (end := too_long(entry.passage, line.level, waited + wait)) is not None:
            self.give_up(entry, end.error)
            return
        line.add(entry)
        if not entry.held:
            self._stats.held += 1
        else:
            self._host.unhold(entry)
        entry.held = True
        self._host.hold(entry, line.level)

    def is_refused(self, entry: Entry, level: Level, wait: float) -> bool:
        """Tell of the refusal of one that is to be parked; return whether it is given up: it may not wait so long."""
        waited = self.waited(entry)
        self._stats.refused += 1
        self._host.refused(entry, level, wait)
        if (end := too_long(entry.passage, level, waited + wait)) is None:
            return False
        self.give_up(entry, end.error)
        return True

    def refuse(self, entry: Entry, origin: Line | None, level: Level, wait: float, *, had_place: bool) -> bool:
        """
        Act on the refusal of one who came from the line *origin*, if from any; return whether it waits in this worker.

        Args:
            entry: The task.
            origin: Where it stood.
            level: The level that binds.
            wait: Seconds until it may ask again.
            had_place: Whether it came with a place in that level's line.
        """
        waited = self.waited(entry)
        entry.ready_at = self._host.monotonic() + wait
        if origin is None or origin.level is not level:
            self._stats.refused += 1
            self._host.refused(entry, level, wait)
        refused = decide(entry.passage, level, wait, waited, had_place=had_place, cap=self._max_countdown)
        if isinstance(refused, GiveUp):
            self.give_up(entry, refused.error)
            return False
        return isinstance(refused, Hold) or not self.send_back(entry, refused.countdown)
