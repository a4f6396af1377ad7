"""The ticket a refused task carries in its headers: the places it was promised, and since when it waits. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bucketflow_celery.config.levels import Level
from bucketflow_celery.scheduling.admit import NO_DEADLINE

__all__ = ["HEADER", "NO_TICKET", "Ticket"]

#: The message header that holds the ticket.
HEADER = "bucketflow"


@dataclass(frozen=True, slots=True)
class Ticket:
    """
    What a task that comes back shows at the door.

    Attributes:
        reservations: By key of the bucket: the instant, in µs of the store's clock, at which its place comes.
        waiting_since: When it was first refused, in seconds since the Unix epoch; ``None`` if it never was.
    """

    reservations: Mapping[str, int] = field(default_factory=dict)
    waiting_since: float | None = None

    @classmethod
    def read(cls, header: object) -> Ticket:
        """Read a header. One that cannot be read is no ticket: its task joins the line again."""
        if not isinstance(header, Mapping):
            return NO_TICKET
        dues, since = header.get("dues"), header.get("since")
        if not isinstance(dues, Mapping) or not _is_instant(since):
            return NO_TICKET
        valid = {str(key): due for key, due in dues.items() if isinstance(due, int) and _is_instant(due)}
        return cls(valid, since)

    def write(self) -> dict[str, Any]:
        """Return the header: plain JSON."""
        return {"dues": dict(self.reservations), "since": self.waiting_since}

    def at(self, path: tuple[Level, ...]) -> tuple[int, ...]:
        """Return the place it has at each level of *path*, 0 for none; same length and order."""
        return tuple(self.reservations.get(level.key, 0) for level in path)


NO_TICKET = Ticket()


def _is_instant(value: object) -> bool:
    # Anything else would fail the script, for all tasks that ask in the same call.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < NO_DEADLINE
