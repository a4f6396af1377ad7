"""
A web service that publishes tasks to throttled workers, and tells its customers how long a new task would wait.

Each customer is a tenant. The service writes it into the message header ``tenant``, so the tasks need no argument for
it.

Needs Redis, at $REDIS_URL or on localhost. In three terminals:

    celery -A fastapi_publisher worker
    uvicorn fastapi_publisher:api
    curl -X POST -H "X-Api-Key: key-of-acme" "localhost:8000/thumbnails?image=cat.png"
"""

from __future__ import annotations

import os
from typing import Annotated

from celery import Celery
from celery.result import AsyncResult
from fastapi import Depends, FastAPI, Header, HTTPException

from bucketflow_celery import Throttle

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379/0")
CUSTOMERS = {"key-of-acme": "acme", "key-of-brick": "brick"}

app = Celery("fastapi_publisher", broker=REDIS_URL, backend=REDIS_URL)
throttle = Throttle(app, limits={"tenants": {"*": "2/s"}})
api = FastAPI()


@app.task
def thumbnail(image: str) -> str:
    """Return the name of a thumbnail. A real task would make it."""
    return f"thumbnail of {image}"


def customer(x_api_key: Annotated[str, Header()]) -> str:
    """Return the customer that the API key belongs to."""
    if x_api_key not in CUSTOMERS:
        raise HTTPException(401, "unknown key")
    return CUSTOMERS[x_api_key]


# Publishing blocks, so the endpoints are plain functions, which FastAPI runs in threads.


@api.post("/thumbnails", status_code=202)
def create_thumbnail(image: str, tenant: Annotated[str, Depends(customer)]) -> dict[str, str]:
    """Publish a task that makes a thumbnail."""
    result = thumbnail.apply_async((image,), headers={"tenant": tenant})
    return {"id": result.id}


@api.get("/thumbnails/{task_id}")
def get_thumbnail(task_id: str) -> dict[str, str | None]:
    """Return the state of the task, and its result if it has one."""
    result = AsyncResult(task_id, app=app)
    return {"state": result.state, "result": result.result if result.successful() else None}


@api.get("/delay")
def get_delay(tenant: Annotated[str, Depends(customer)]) -> dict[str, float]:
    """Return, by level, for how many seconds start times are reserved: a new task starts after that."""
    return {view.level.name: view.reserved_for for view in throttle.peek("celery", thumbnail.name, tenant)}
