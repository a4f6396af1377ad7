"""
Tenant stamp: the message header that names a task's tenant.

A publisher that has the app's ``Throttle`` writes it. Otherwise the worker determines the tenant from the arguments.
"""

from __future__ import annotations

from typing import Any

from celery import current_task

from bucketflow.errors import ConfigError
from bucketflow_celery.config.rules import HEADER, TenantRule
from bucketflow_celery.config.task_calls import calls_of, tenant_of_calls
from bucketflow_celery.scheduling import ticket

__all__ = ["stamp"]


def stamp(app: Any, default: TenantRule, name: str, headers: dict[str, Any], body: Any) -> None:
    """
    Write the tenant into *headers*, unless the caller has set it.

    If the tenant cannot be determined here, the worker determines it: an error then reaches the task's result.

    Args:
        app: The publisher's Celery app.
        default: The throttle's rule for tasks without a rule of their own.
        name: The name of the task to be published.
        headers: The message's headers, to be changed.
        body: The message's body. Its first two items are the positional and the keyword arguments.
    """
    # A task that retries itself publishes the headers it was received with. Their ticket belongs to that delivery.
    headers.pop(ticket.HEADER, None)
    if headers.get(HEADER) is not None:
        return
    request = current_task.request if current_task else None
    if request is not None and request.id == headers.get("id") and request.get(HEADER) is not None:
        # A retry with headers of its own: Celery replaces all that the task was received with.
        headers[HEADER] = request.get(HEADER)
        return
    task = app.tasks.get(name)
    if task is None or not isinstance(body, tuple):
        return
    try:
        tenant = tenant_of_calls(calls_of(app.tasks, task, body[0], body[1]), default, headers)
    except ConfigError:
        return
    if tenant is not None:
        headers[HEADER] = tenant
