"""The ticket of a refused task: the message header that carries its reservations, and when it was first refused."""

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
    The reservations that a refused task takes along when it is republished.

    A ticket reserves a position, not tokens. A redelivered task must still acquire tokens.

    Attributes:
        reservations: Start time at each level, in µs of the store's clock, by key of the level.
        waiting_since: Since when the task waits, in seconds since the Unix epoch; ``None``: it does not wait yet.
        due_since: Since when it is due and waits for a slot of any worker, likewise; ``None``: it does not.
        paused: The pause that it waits for: see :func:`bucketflow_celery.config.table.pause_name`.
        seen_at: When a worker received the task first, in µs of the store's clock; ``None``: that is not known.
    """

    reservations: Mapping[str, int] = field(default_factory=dict)
    waiting_since: float | None = None
    due_since: float | None = None
    paused: str | None = None
    seen_at: int | None = None

    @classmethod
    def read(cls, header: object) -> Ticket:
        """Read *header*. A malformed header is no ticket: its task is treated as a fresh one."""
        if not isinstance(header, Mapping):
            return NO_TICKET
        dues, since, due_since = header.get("dues"), header.get("since"), header.get("due_since")
        if not isinstance(dues, Mapping) or not _is_instant(since):
            return NO_TICKET
        valid = {str(key): due for key, due in dues.items() if isinstance(due, int) and _is_instant(due)}
        paused, seen_at = header.get("paused"), header.get("seen")
        return cls(
            valid,
            since,
            due_since if _is_instant(due_since) else None,
            paused if isinstance(paused, str) else None,
            seen_at if isinstance(seen_at, int) and _is_instant(seen_at) else None,
        )

    def write(self) -> dict[str, Any]:
        """Return the header, which JSON can carry."""
        header: dict[str, Any] = {"dues": dict(self.reservations), "since": self.waiting_since}
        if self.due_since is not None:
            header["due_since"] = self.due_since
        if self.paused is not None:
            header["paused"] = self.paused
        if self.seen_at is not None:
            header["seen"] = self.seen_at
        return header

    def at(self, path: tuple[Level, ...]) -> tuple[int, ...]:
        """Return the reservation at each level of *path*, 0 for none; same length and order."""
        return tuple(self.reservations.get(level.key, 0) for level in path)


NO_TICKET = Ticket()


def _is_instant(value: object) -> bool:
    # Any other value would fail the script, for all requests of the same call.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < NO_DEADLINE
