"""
The app that the tests' workers run, configured by JSON in the environment variable ``WORKLOAD``.

It records the events of a worker in a Redis that no test stops: starts, deliveries, refusals and callbacks. The record
of a start has all that the task can see of its request.
"""

from __future__ import annotations

import json
import os
import time

import redis
from celery import Celery, Task, current_task, signals

from bucketflow_celery import Throttle, task_throttled, throttled_task

CONFIG = json.loads(os.environ["WORKLOAD"])
NODE = os.environ["WORKLOAD_NODE"]

records = redis.Redis.from_url(os.environ["WORKLOAD_RECORDS"])

app = Celery("workloads")
app.config_from_object(CONFIG)
throttle = Throttle(app)


def record(kind, **facts):
    records.rpush(kind, json.dumps({"at": time.time(), "node": NODE, "pid": os.getpid(), **facts}, default=str))


@signals.worker_process_init.connect
def warm_up(**_):
    # Connect now, so that the first task of a child does not start late.
    records.ping()


@signals.task_received.connect
def on_received(request, **_):
    records.hincrby("deliveries", request.id, 1)


@signals.task_prerun.connect
def on_start(task_id, task, args, kwargs, **_):
    request = task.request
    record(
        "starts",
        id=task_id,
        task=task.name,
        args=args,
        kwargs=kwargs,
        retries=request.retries,
        tenant=request.get("tenant"),
        priority=(request.delivery_info or {}).get("priority"),
        reply_to=request.reply_to,
        correlation_id=request.correlation_id,
        root_id=request.root_id,
        parent_id=request.parent_id,
        group=request.group,
        expires=request.expires,
        timelimit=request.timelimit,
        custom=request.get("custom"),
        stamped=request.get("stamps"),
        shadow=request.shadow,
        compression=request.get("compression"),
        ticket=request.get("bucketflow"),
    )


@task_throttled.connect
def on_throttled(sender, request, level, wait, **_):
    record("refusals", id=request.id, task=sender.name, level=level, wait=wait)


@app.task
def work(tenant=None, seconds=0.0):
    if seconds:
        time.sleep(seconds)
    return tenant


@app.task
def add(x, y):
    return x + y


@app.task
def total(numbers):
    return sum(numbers)


@app.task
def fail(tenant=None):
    raise RuntimeError(f"{tenant} always fails")


@app.task
def linked(result, mark):
    record("callbacks", result=result, mark=mark)


@app.task
def errback(request, error, _traceback):
    record("errbacks", id=request.id, error=type(error).__name__, text=str(error))


@app.task(bind=True, max_retries=2)
def stubborn(self):
    """Retry until ``max_retries``, and return the number of retries."""
    if self.request.retries < self.max_retries:
        raise self.retry(countdown=1)
    return self.request.retries


@app.task(autoretry_for=(ConnectionError,), retry_kwargs={"max_retries": 2}, retry_backoff=False, default_retry_delay=0)
def shaky():
    """Fail until the last of two retries."""
    if current_task.request.retries < 2:
        raise ConnectionError("not yet")
    return current_task.request.retries


@app.task(acks_late=True, reject_on_worker_lost=True)
def late(tenant=None, seconds=0.0):
    if seconds:
        time.sleep(seconds)
    return tenant


@throttled_task(app=app, cost="tokens")
def heavy(tokens=1):
    return tokens


@throttled_task(app=app, tenant=lambda order: order["account"])
def ship(order):
    return order["account"]


@throttled_task(app=app, tenant="account", rate="10/s", capacity=2, bind=True)
def sync(self: Task, account, order=0):
    return [self.request.id, account, order]


@throttled_task(app=app, max_wait=0.5)
def impatient(tenant=None):
    return tenant
