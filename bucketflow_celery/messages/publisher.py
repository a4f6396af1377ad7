"""
The app that publishes a message.

Celery's signal ``before_task_publish`` reaches the receivers of all apps in the process, and names the task only.
"""

from __future__ import annotations

from contextvars import ContextVar
from functools import wraps
from typing import Any

__all__ = ["is_published_by", "track_publishing"]

#: The app whose ``send_task`` runs, and the name of the task that it sends.
_publishing: ContextVar[tuple[Any, str] | None] = ContextVar("bucketflow_publishing", default=None)


def track_publishing(app: Any) -> None:
    """Let :func:`is_published_by` recognise the messages of *app*. Celery publishes all with ``app.send_task``."""
    send_task = app.send_task

    @wraps(send_task)
    def tracked(name: str, *args: Any, **options: Any) -> Any:
        token = _publishing.set((app, name))
        try:
            return send_task(name, *args, **options)
        finally:
            _publishing.reset(token)

    app.send_task = tracked


def is_published_by(app: Any, name: str) -> bool:
    """Return whether the message for the task *name* that is about to be published is one of *app*."""
    publishing = _publishing.get()
    return publishing is not None and publishing[0] is app and publishing[1] == name
