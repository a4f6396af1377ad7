"""
Purge marks: a purge ends all matching tasks that exist at its instant, wherever they wait and whenever they come back.

A worker compares when it, or another worker, has seen a task first with the instant of each mark that matches. Both are
instants of the store's clock.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import NamedTuple

from bucketflow.limit import SECOND

__all__ = ["MAX_PURGES", "NO_PURGES", "PURGE_TTL", "Purge", "PurgeMarks"]

#: µs for which a mark is kept. A task that waits for longer outlives it.
PURGE_TTL = 7 * 24 * 3600 * SECOND
#: Most marks that are kept, one for each combination of queue, tenant and task type. The oldest are dropped.
MAX_PURGES = 1000


class Purge(NamedTuple):
    """
    Which tasks a purge ends.

    Attributes:
        queue: Their queue.
        tenant: Their tenant, ``""`` for none; ``None``: any.
        task: Their task type; ``None``: any.
    """

    queue: str
    tenant: str | None = None
    task: str | None = None

    def write(self) -> str:
        """Return the name of its mark."""
        return json.dumps(self)

    @classmethod
    def read(cls, name: str) -> Purge | None:
        """Return the purge with the mark *name*; ``None``: it has none of this form."""
        try:
            queue, tenant, task = json.loads(name)
        except (ValueError, TypeError):
            return None
        is_valid = isinstance(queue, str) and isinstance(tenant, str | None) and isinstance(task, str | None)
        return cls(queue, tenant, task) if is_valid else None


class PurgeMarks:
    """
    The marks of a fleet.

    Args:
        marks: The name and the instant of each, in µs of the store's clock.
        now: The store's time in µs. No mark counts as later: the clock has stepped back since.
    """

    def __init__(self, marks: Iterable[tuple[str, int]] = (), now: int = 0) -> None:
        self._instants: dict[Purge, int] = {}
        for name, instant in marks:
            purge = Purge.read(name)
            if purge is not None:
                self._instants[purge] = min(instant, now)
        #: The instant of the latest mark, in µs; 0: there is none.
        self.latest = max(self._instants.values(), default=0)

    def purged_at(self, queue: str, tenant: str | None, task: str | None) -> int:
        """
        Return when tasks of *queue*, *tenant* and *task* were purged last, in µs; 0: they were not.

        Args:
            queue: A queue.
            tenant: A tenant; ``None`` for none.
            task: A task type; ``None``: all of them together.
        """
        if not self._instants:
            return 0
        matching = [Purge(queue, name, kind) for name in (None, tenant or "") for kind in (None, task)]
        return max(self._instants.get(purge, 0) for purge in matching)


NO_PURGES = PurgeMarks()
