"""Replies of the backlog's scripts as Python values."""

from __future__ import annotations

from typing import Any

from bucketflow.redis_client.encoding import text_of
from bucketflow_celery.scheduling.model import (
    DispatchedTask,
    DispatchReply,
    Lane,
    LeasedTask,
    ParkedTask,
    TenantSummary,
)

__all__ = ["dispatch_reply"]


def dispatch_reply(queue: str, reply: Any) -> DispatchReply:
    """Convert the reply of ``lua/dispatch.lua`` for *queue*."""
    _, wait, dispatched, following, types, unclaimed = reply
    tasks = []
    for uid, admitted, tenant, task, rank, redelivered, since, cost, deadline, message in dispatched:
        item = ParkedTask(uid, since, float(cost), deadline, redelivered == 1)
        tasks.append(
            DispatchedTask(
                LeasedTask(queue, Lane(text_of(tenant), text_of(task), rank), item), message or b"", admitted == 1
            )
        )
    known = tuple(
        TenantSummary(
            text_of(name), tuple((text_of(task), tuple(ranks)) for task, ranks in zip(*[iter(types)] * 2, strict=True))
        )
        for name, types in zip(*[iter(following)] * 2, strict=True)
    )
    return DispatchReply(
        tuple(tasks), None if wait < 0 else wait, known, tuple(map(text_of, types)), tuple(map(text_of, unclaimed))
    )
