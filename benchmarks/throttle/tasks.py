"""The Celery app of the measured workers, configured by environment variables that ``workers.py`` sets."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import redis
from celery import Celery, Task
from celery.signals import task_received, worker_ready

from bucketflow_celery import Throttle

PORT = int(os.environ["BENCH_PORT"])
MODE = os.environ["BENCH_MODE"]
LIMITS = json.loads(os.environ["BENCH_LIMITS"])

app = Celery("tasks", broker=f"redis://127.0.0.1:{PORT}/0")
app.conf.task_ignore_result = True
app.conf.worker_send_task_events = False
app.conf.task_acks_late = os.environ["BENCH_ACKS_LATE"] == "1"
VISIBILITY = float(os.environ["BENCH_VISIBILITY"])
app.conf.broker_transport_options = {"visibility_timeout": VISIBILITY}
if VISIBILITY < 5:  # kombu restores unacknowledged messages every 100 s by default
    app.conf.broker_transport_options.update(unacked_restore_interval=1, unacked_restore_throttle=1)
records = redis.Redis(port=PORT, db=3)

if MODE in ("throttle", "park"):
    throttle = Throttle(
        app,
        url=f"redis://127.0.0.1:{PORT}/1",
        limits=LIMITS,
        tenant="tenant",
        on_limit="park" if MODE == "park" else "retry",
        lease=float(os.environ["BENCH_LEASE"]),
    )


@app.task
def work(tenant: str | None, seconds: float = 0.0) -> None:
    """Record the start, then sleep for *seconds*."""
    records.rpush("starts", f"{time.time()} {tenant}")
    if seconds:
        time.sleep(seconds)


@app.task(bind=True)
def traced(self: Task, tenant: str | None, seconds: float = 0.0) -> None:
    """Record the start with task id and worker, sleep for *seconds*, and record the end."""
    del tenant  # the throttle reads it
    records.rpush("runs", f"{self.request.id} {self.request.hostname} {time.time()}")
    time.sleep(seconds)
    records.rpush("ends", f"{self.request.id} {self.request.hostname} {time.time()}")


@app.task
def noop(tenant: str | None, seconds: float = 0.0) -> None:
    """Sleep for *seconds*, as if calling an external API, and count the task."""
    del tenant  # the throttle reads it
    if seconds:
        time.sleep(seconds)
    records.incr("done")


@app.task(bind=True, max_retries=None)
def retrying(self: Task, tenant: str | None) -> None:
    """Limit the rate without the throttle: consume inside the task, and retry after the wait of a refusal."""
    decision = bucket().try_consume()
    if not decision.allowed:
        raise self.retry(countdown=decision.retry_after)
    records.rpush("starts", f"{time.time()} {tenant}")


_buckets: list[Any] = []


def bucket() -> Any:  # noqa: ANN401
    """Return the bucket of :func:`retrying`, made on first use in the pool process."""
    if not _buckets:
        from bucketflow.distributed import RedisTokenBucket  # noqa: PLC0415 - only where it is measured

        client = redis.Redis(port=PORT, db=1)
        _buckets.append(RedisTokenBucket(client, "plain", LIMITS["capacity"], LIMITS["fill_rate"]))
    return _buckets[0]


if MODE == "celery-heimdall":
    from celery_heimdall import HeimdallTask, RateLimit

    @app.task(base=HeimdallTask, heimdall={"key": "bench", "rate_limit": RateLimit(tuple(LIMITS["window"]))})
    def watched(tenant: str | None) -> None:
        """Record the start of a task that another library rate-limits."""
        records.rpush("starts", f"{time.time()} {tenant}")


if os.environ["BENCH_COUNT"] == "1":

    @task_received.connect
    def count_delivery(request: Any, **_: object) -> None:  # noqa: ANN401
        """Record a delivery."""
        records.rpush("deliveries", request.id)


@worker_ready.connect
def count_worker(**_: object) -> None:
    """Count a worker that is ready."""
    records.incr("ready")
