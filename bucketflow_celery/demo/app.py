"""The Celery app of the demo: its tasks, their throttle, and the signals that record what the workers do."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from celery import Celery, Task
from celery.signals import task_received, worker_ready

from bucketflow_celery import LevelView, Throttle, throttled_task
from bucketflow_celery.config.levels import Level
from bucketflow_celery.demo.environment import Environment
from bucketflow_celery.demo.limits import LIMITS, QUEUE, TASKS, queue_of
from bucketflow_celery.demo.run_log import Recorder

__all__ = ["app", "configure", "peek", "throttle"]

#: How long a task runs, in seconds.
TASK_SECONDS = 0.02

app = Celery("demo", set_as_current=False)
throttle = Throttle(app, limits=LIMITS)


def configure(environment: Environment) -> None:
    """Set the broker and the bucket store of the app to *environment*."""
    app.conf.update(
        broker_url=environment.url,
        broker_transport_options={"global_keyprefix": f"{environment.prefix}broker:"},
        broker_connection_retry_on_startup=True,
        task_default_queue=QUEUE,
        task_ignore_result=True,
        bucketflow_url=environment.url,
        bucketflow_namespace=environment.namespace,
    )


def peek(paths: Mapping[tuple[str, str], Sequence[Level]]) -> dict[str, LevelView]:
    """
    Return the current state of the levels of *paths*, by level key.

    Args:
        paths: Levels by tenant and task, see :func:`~bucketflow_celery.demo.limits.path_of`.

    Raises:
        StoreUnavailable: Redis did not reply in time.
    """
    views: dict[str, LevelView] = {}
    for (tenant, task), path in paths.items():
        if any(level.key not in views for level in path):
            views.update((view.level.key, view) for view in throttle.peek(queue_of(task), task, tenant))
    return views


def _work(task: Task) -> None:
    at = time.monotonic()
    _recorder().record_start(task.request.id, at)
    time.sleep(TASK_SECONDS)


@throttled_task(app=app, name="order", bind=True, tenant="tenant", cost="cost", rate=TASKS["order"])
def order(self: Task, tenant: str, cost: float) -> None:  # noqa: ARG001 - the throttle reads them
    """Work for a tenant."""
    _work(self)


@throttled_task(app=app, name="report", bind=True, tenant="tenant", cost="cost", rate=TASKS["report"])
def report(self: Task, tenant: str, cost: float) -> None:  # noqa: ARG001 - the throttle reads them
    """Work for a tenant under a limit of the task's own."""
    _work(self)


@throttled_task(app=app, name="retry", bind=True, tenant="tenant", cost="cost", on_limit="retry")
def retry(self: Task, tenant: str, cost: float) -> None:  # noqa: ARG001 - the throttle reads them
    """Work for a tenant; a refused task is held by a worker or deferred to the broker."""
    _work(self)


@throttled_task(app=app, name="park", bind=True, tenant="tenant", cost="cost", on_limit="park")
def park(self: Task, tenant: str, cost: float) -> None:  # noqa: ARG001 - the throttle reads them
    """Work for a tenant; a refused task is parked in Redis."""
    _work(self)


@cache
def _recorder() -> Recorder:
    environment = Environment.from_variables(os.environ)
    if environment is None:
        raise RuntimeError("no demo environment: start this app with python -m bucketflow_celery.demo")
    return Recorder(environment)


def _record_delivery(request: Any, **_: object) -> None:
    _recorder().record_delivery(request.id)


def _record_ready(**_: object) -> None:
    _recorder().record_ready()


if (_environment := Environment.from_variables(os.environ)) is not None:  # this process is a worker
    configure(_environment)
    task_received.connect(_record_delivery)
    worker_ready.connect(_record_ready)
