"""Whom a task is for: stamped on the message by the publisher, else worked out by the worker."""

from __future__ import annotations

from typing import Any

from celery import current_task

from bucketflow.errors import ConfigError
from bucketflow_celery.config.rules import HEADER, TenantRule, tenant_of
from bucketflow_celery.scheduling import ticket

__all__ = ["stamp"]


def stamp(app: Any, default: TenantRule, name: str, headers: dict[str, Any], body: Any) -> None:
    """
    Write the tenant into the headers of a message about to be published.

    A tenant that cannot be determined is left to the worker, whose error reaches the task's result.
    """
    # A task that retries itself sends the headers it came with. Its ticket belongs to the delivery that has started.
    headers.pop(ticket.HEADER, None)
    if headers.get(HEADER) is not None:
        return
    request = current_task.request if current_task else None
    if request is not None and request.id == headers.get("id") and request.get(HEADER) is not None:
        # A task that retries itself with headers of its own: Celery puts them in place of those it came with.
        headers[HEADER] = request.get(HEADER)
        return
    task = app.tasks.get(name)
    if task is None or not isinstance(body, tuple):
        return
    try:
        tenant = tenant_of(task, default, headers, body[0], body[1])
    except ConfigError:
        return
    if tenant is not None:
        headers[HEADER] = tenant
