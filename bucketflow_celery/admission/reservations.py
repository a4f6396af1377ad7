"""The places that a worker's lines were promised by levels that hold. Pure."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable

from bucketflow.limit import SECOND
from bucketflow_celery.admission.pending_task import Entry
from bucketflow_celery.scheduling.admit import Answer, Ask

__all__ = ["Places"]

#: The patience of a task that is promised no place: it is parked instead.
NO_PLACE = -1


class Places:
    """
    Places in the lines of ``all`` and of the queues, by key, in µs of the store's clock.

    Such a place belongs to the worker's line and not to a task: if its head turns out to wait for its tenant, is
    revoked, gives up or goes back to the broker, the next one uses it. At most a few a queue: whoever asks takes one.
    """

    def __init__(self) -> None:
        self._dues: dict[str, list[int]] = {}

    def question(self, entry: Entry, waited: float) -> Ask:
        """Return the question of *entry*, which has waited so many seconds; it takes the first place of each line."""
        passage = entry.passage
        if passage.parks:
            return Ask(
                passage.path, passage.cost, (0,) * len(passage.path), NO_PLACE, entry.queue, passage.tenant or ""
            )
        dues = [entry.dues.get(level.key, 0) if level.returns else self._take(level.key) for level in passage.path]
        if passage.max_wait is None:
            return Ask(passage.path, passage.cost, tuple(dues))
        return Ask(passage.path, passage.cost, tuple(dues), max(0, round((passage.max_wait - waited) * SECOND)))

    def settle(self, entry: Entry, answer: Answer) -> None:
        """Keep the places of one who was not admitted: its own with *entry*, the others here."""
        for level, due in zip(entry.passage.path, answer.dues, strict=True):
            if due and level.returns:
                entry.dues[level.key] = due
            elif due:
                insort(self._dues.setdefault(level.key, []), due)

    def restore(self, asks: Iterable[Ask]) -> None:
        """Take back what questions took that were not answered."""
        for ask in asks:
            for level, due in zip(ask.path, ask.dues, strict=True):
                if due and not level.returns:
                    insort(self._dues.setdefault(level.key, []), due)

    def _take(self, key: str) -> int:
        dues = self._dues.get(key)
        return dues.pop(0) if dues else 0
