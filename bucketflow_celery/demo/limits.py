"""The limits that the demo's workers obey. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import unquote

from bucketflow_celery.limits import Level, Limit, LimitTable

__all__ = ["LIMITS", "QUEUE", "TASKS", "label", "path_of", "rate"]

#: The queue all tasks go to.
QUEUE = "demo"

#: What the fleet is told. Together the tenants may ask for more than their queue grants: then the queue decides.
LIMITS = {
    "queues": {QUEUE: "40/s"},
    "tenants": {"*": "10/s", "acme": "25/s"},
}

#: The tasks there are, with the limit of their own that they have, if any.
TASKS: Mapping[str, Limit | None] = {
    "order": None,
    "report": Limit(capacity=4, fill_rate=4, shared=True),  # think of an API key that all tenants share
}

_TABLE = LimitTable.parse(LIMITS, [])


def path_of(tenant: str, task: str) -> tuple[Level, ...]:
    """Return the levels that *task*, one of :data:`TASKS`, passes for *tenant*; root first, length >= 1."""
    return _TABLE.path(QUEUE, tenant, task, TASKS[task])


def label(level: Level) -> str:
    """Return what people call *level*: ``"tenant acme"``."""
    return f"{level.name} {unquote(level.key.rpartition(':')[2])}"


def rate(level: Level) -> str:
    """Return the limit of *level* in words: ``"25/s, burst 25"``."""
    return f"{level.limit.fill_rate:g}/s, burst {level.limit.capacity:g}"
