"""The ticket a refused task carries in its headers: the places it was promised, and since when it waits. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bucketflow_celery.admission import FOREVER
from bucketflow_celery.limits import Level

__all__ = ["HEADER", "NO_TICKET", "Ticket"]

#: The message header that holds the ticket.
HEADER = "bucketflow"


@dataclass(frozen=True, slots=True)
class Ticket:
    """
    What a task that comes back shows at the door.

    Attributes:
        dues: By key of the bucket: the instant, in µs of the store's clock, at which its place comes.
        since: When it was first refused, in seconds since the Unix epoch; ``None`` if it never was.
        version: Of the limits its places were promised under. Under others they are other places.
    """

    dues: Mapping[str, int] = field(default_factory=dict)
    since: float | None = None
    version: str = ""

    @classmethod
    def read(cls, header: object, version: str = "") -> Ticket:
        """
        Read a header; one that cannot be read is no ticket.

        Places promised under other limits than those of *version* are void: their task joins the line again.
        """
        if not isinstance(header, Mapping):
            return NO_TICKET
        dues, since = header.get("dues"), header.get("since")
        if not isinstance(dues, Mapping) or not _is_instant(since):
            return NO_TICKET
        if header.get("version", "") != version:
            dues = {}
        valid = {str(key): due for key, due in dues.items() if isinstance(due, int) and _is_instant(due)}
        return cls(valid, since, version)

    def write(self) -> dict[str, Any]:
        """Return the header: plain JSON."""
        return {"dues": dict(self.dues), "since": self.since, "version": self.version}

    def at(self, path: tuple[Level, ...]) -> tuple[int, ...]:
        """Return the place it has at each level of *path*, 0 for none; same length and order."""
        return tuple(self.dues.get(level.key, 0) for level in path)


NO_TICKET = Ticket()


def _is_instant(value: object) -> bool:
    # Anything else would fail the script, for all tasks that ask in the same call.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < FOREVER
