"""Celery signals of the throttle."""

from __future__ import annotations

from celery.utils.dispatch import Signal

__all__ = ["task_throttled"]

#: Sent in the worker's main process when a level refuses a task. The sender is the task. The arguments are ``request``,
#: ``level`` (the binding level: "all", "queue", "tenant" or "task") and ``wait`` (seconds until it has the tokens).
task_throttled = Signal(name="task_throttled", providing_args={"request", "level", "wait"})
