"""The limits that the demo's workers enforce, and the queues, tenants and tasks that they apply to."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import unquote

from bucketflow_celery.config.levels import Level
from bucketflow_celery.config.limit import Limit
from bucketflow_celery.config.table import LimitTable

__all__ = ["LIMITS", "MODES", "NOISY", "QUEUE", "QUIET", "TASKS", "label", "limit_label", "path_of", "queue_of"]

#: The queue of the tasks of a workload file.
QUEUE = "demo"

#: The ``on_limit`` modes that the second scenario compares. Each has a task and a queue of its name.
MODES = ("retry", "park")

#: The tenants of the second scenario. Only their queue limits them.
NOISY, QUIET = "noisy", "quiet"

#: The limits of the throttle. The tenants' rates may add up to more than the queue's rate: then the queue is binding.
LIMITS = {
    "queues": {QUEUE: "40/s", **dict.fromkeys(MODES, Limit(capacity=4, fill_rate=20))},
    "tenants": {"*": "10/s", "acme": "25/s", NOISY: None, QUIET: None},
}

#: The tasks that a workload file may name, and the task's own limit if it has one.
TASKS: Mapping[str, Limit | None] = {
    "order": None,
    "report": Limit(capacity=4, fill_rate=4, shared=True),  # like an API key that all tenants share
}

_TABLE = LimitTable.parse(LIMITS, [])


def queue_of(task: str) -> str:
    """Return the queue of *task*, one of :data:`TASKS` or :data:`MODES`."""
    return task if task in MODES else QUEUE


def path_of(tenant: str, task: str) -> tuple[Level, ...]:
    """Return the levels that limit *task* for *tenant*; root first, length >= 1."""
    return _TABLE.path(queue_of(task), tenant, task, TASKS.get(task))


def label(level: Level) -> str:
    """Return the display name of *level*: ``"tenant acme"``."""
    return f"{level.name} {unquote(level.key.rpartition(':')[2])}"


def limit_label(level: Level) -> str:
    """Return the limit of *level* for display: ``"25/s, burst 25"``."""
    return f"{level.limit.fill_rate:g}/s, burst {level.limit.capacity:g}"
