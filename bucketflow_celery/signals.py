"""The signal that tells of a refusal."""

from __future__ import annotations

from celery.utils.dispatch import Signal

__all__ = ["task_throttled"]

#: Sent in the worker's main process when a task may not start yet. The sender is the task; the arguments are
#: ``request``, ``level`` ("all", "queue", "tenant" or "task": the one that binds) and ``wait`` (seconds).
task_throttled = Signal(name="task_throttled", providing_args={"request", "level", "wait"})
