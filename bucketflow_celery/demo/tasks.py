"""The app that the demo runs: its tasks, and the throttle in front of them."""

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
from bucketflow_celery.demo.limits import LIMITS, QUEUE, TASKS, queue_of
from bucketflow_celery.demo.place import Place
from bucketflow_celery.demo.records import Records

__all__ = ["app", "configure", "peek", "throttle"]

#: Seconds a task works.
WORK = 0.02

app = Celery("demo", set_as_current=False)
throttle = Throttle(app, limits=LIMITS)


def configure(place: Place) -> None:
    """Tell the app where its broker and its buckets are."""
    app.conf.update(
        broker_url=place.url,
        broker_transport_options={"global_keyprefix": f"{place.prefix}broker:"},
        broker_connection_retry_on_startup=True,
        task_default_queue=QUEUE,
        task_ignore_result=True,
        bucketflow_url=place.url,
        bucketflow_namespace=place.namespace,
    )


def peek(paths: Mapping[tuple[str, str], Sequence[Level]]) -> dict[str, LevelView]:
    """
    Return how levels stand, by key.

    Args:
        paths: By tenant and task, see :func:`~bucketflow_celery.demo.limits.path_of`.

    Raises:
        StoreUnavailable: Redis did not answer in time.
    """
    views: dict[str, LevelView] = {}
    for (tenant, task), path in paths.items():
        if any(level.key not in views for level in path):
            views.update((view.level.key, view) for view in throttle.peek(queue_of(task), task, tenant))
    return views


def _work(task: Task) -> None:
    at = time.monotonic()
    _records().start(task.request.id, at)
    time.sleep(WORK)


@throttled_task(app=app, name="order", bind=True, tenant="tenant", cost="cost", rate=TASKS["order"])
def order(self: Task, tenant: str, cost: float) -> None:  # noqa: ARG001 - the throttle reads them
    """Work for a tenant."""
    _work(self)


@throttled_task(app=app, name="report", bind=True, tenant="tenant", cost="cost", rate=TASKS["report"])
def report(self: Task, tenant: str, cost: float) -> None:  # noqa: ARG001 - the throttle reads them
    """Work for a tenant, with a limit of its own."""
    _work(self)


@throttled_task(app=app, name="retry", bind=True, tenant="tenant", cost="cost", on_limit="retry")
def retry(self: Task, tenant: str, cost: float) -> None:  # noqa: ARG001 - the throttle reads them
    """Work for a tenant; refused, wait in a worker or with the broker."""
    _work(self)


@throttled_task(app=app, name="park", bind=True, tenant="tenant", cost="cost", on_limit="park")
def park(self: Task, tenant: str, cost: float) -> None:  # noqa: ARG001 - the throttle reads them
    """Work for a tenant; refused, wait in Redis."""
    _work(self)


@cache
def _records() -> Records:
    place = Place.read(os.environ)
    if place is None:
        raise RuntimeError("this app is run by python -m bucketflow_celery.demo")
    return Records(place)


def _count_delivery(request: Any, **_: object) -> None:
    _records().delivery(request.id)


def _count_worker(**_: object) -> None:
    _records().worker_ready()


if (_place := Place.read(os.environ)) is not None:  # in a worker
    configure(_place)
    task_received.connect(_count_delivery)
    worker_ready.connect(_count_worker)
