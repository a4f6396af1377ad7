"""
Moving parked tasks from the backlog of one queue to that of another.

``store/lua/move.lua`` mirrors this file.
"""

from __future__ import annotations

from collections.abc import Sequence

from bucketflow_celery.scheduling.backlog import Backlog
from bucketflow_celery.scheduling.model import Lane, ParkedTask

__all__ = ["first_of", "move"]


def first_of(backlog: Backlog, lane: Lane) -> ParkedTask | None:
    """Return the first task of *lane*; ``None`` if the lane is empty."""
    tenant = backlog.tenants.get(lane.tenant)
    kind = tenant.types.get(lane.task) if tenant is not None else None
    items = kind.lanes.get(lane.rank) if kind is not None else None
    return items[0] if items else None


def move(
    source: Backlog, target: Backlog, lane: Lane, messages: Sequence[tuple[bytes, bytes]], now: int
) -> tuple[int, bool]:
    """
    Move the first tasks of *lane* to the end of the same lane of *target*.

    Args:
        source: Where the tasks are.
        target: Where they go; not *source*.
        lane: Their lane.
        messages: Of the first tasks, in their order: uid, and the message as *target* is to keep it. The move ends
            where the lane has another task by now.
        now: µs of the store's clock.

    Returns:
        How many tasks were moved; and whether to notify the workers of *target*.
    """
    moved = []
    for uid, message in messages:
        first = first_of(source, lane)
        if first is None or first.uid != uid:
            break
        moved.append((source.pop_head(lane, source.tenants[lane.tenant]), message))
        del source.messages[uid]
    source.reset_if_empty()
    for item, message in moved:
        target.messages[item.uid] = message
        target.enter(lane, item)
    return len(moved), bool(moved) and target.should_notify(now, now)
