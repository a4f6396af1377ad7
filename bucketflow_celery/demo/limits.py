"""The limits that the demo's workers obey. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import unquote

from bucketflow_celery.config.levels import Level
from bucketflow_celery.config.limit import Limit
from bucketflow_celery.config.table import LimitTable

__all__ = ["LIMITS", "NOISY", "QUEUE", "QUIET", "SIDES", "TASKS", "label", "path_of", "queue_of", "rate"]

#: The queue the tasks of a workload go to.
QUEUE = "demo"

#: The second act's: a task for each ``on_limit``, with a queue of the same name for it alone.
SIDES = ("retry", "park")

#: The second act's tenants: only their queue limits them.
NOISY, QUIET = "noisy", "quiet"

#: What the fleet is told. Together the tenants may ask for more than their queue grants: then the queue decides.
LIMITS = {
    "queues": {QUEUE: "40/s", **dict.fromkeys(SIDES, Limit(capacity=4, fill_rate=20))},
    "tenants": {"*": "10/s", "acme": "25/s", NOISY: None, QUIET: None},
}

#: The tasks a workload may name, with the limit of their own that they have, if any.
TASKS: Mapping[str, Limit | None] = {
    "order": None,
    "report": Limit(capacity=4, fill_rate=4, shared=True),  # think of an API key that all tenants share
}

_TABLE = LimitTable.parse(LIMITS, [])


def queue_of(task: str) -> str:
    """Return the queue that *task*, one of :data:`TASKS` or :data:`SIDES`, goes to."""
    return task if task in SIDES else QUEUE


def path_of(tenant: str, task: str) -> tuple[Level, ...]:
    """Return the levels that *task* passes for *tenant*; root first, length >= 1."""
    return _TABLE.path(queue_of(task), tenant, task, TASKS.get(task))


def label(level: Level) -> str:
    """Return what people call *level*: ``"tenant acme"``."""
    return f"{level.name} {unquote(level.key.rpartition(':')[2])}"


def rate(level: Level) -> str:
    """Return the limit of *level* in words: ``"25/s, burst 25"``."""
    return f"{level.limit.fill_rate:g}/s, burst {level.limit.capacity:g}"
