"""Ends the tasks that wait for their limits."""

from __future__ import annotations

from bucketflow.errors import ConfigError
from bucketflow_celery.scheduling.purges import Purge
from bucketflow_celery.store.interfaces import Store

__all__ = ["purge_tasks"]


def purge_tasks(store: Store, queue: str, tenant: str | None, task: str | None) -> int:
    """End the matching tasks: see :meth:`bucketflow_celery.Throttle.purge`. Return how many were parked."""
    for entry, name in {"queue": queue, "tenant": tenant, "task": task}.items():
        if not isinstance(name, str) and (name is not None or entry == "queue"):
            raise ConfigError(entry, name, f"the name of a {entry}, as a string")
    store.mark_purge(Purge(queue, tenant, task).write())  # first, so that it holds for tasks dispatched meanwhile
    lanes = store.backlogs.view(queue).select(tenant, task)
    return sum(store.backlogs.purge(queue, lane) for lane in lanes)
