"""
A web service that hands its work to throttled workers, and tells its users how long their line is.

Whoever calls is the tenant: the service stamps it on the message as the header ``tenant``, so the tasks need not know.
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
throttle = Throttle(app, url=REDIS_URL, limits={"tenants": {"*": "2/s"}})
api = FastAPI()


@app.task
def thumbnail(image: str) -> str:
    """Pretend to make a thumbnail."""
    return f"thumbnail of {image}"


def customer(x_api_key: Annotated[str, Header()]) -> str:
    """Return who is calling."""
    if x_api_key not in CUSTOMERS:
        raise HTTPException(401, "unknown key")
    return CUSTOMERS[x_api_key]


# Publishing blocks for a moment, so these are no coroutines: FastAPI runs them in its threads.


@api.post("/thumbnails", status_code=202)
def order(image: str, tenant: Annotated[str, Depends(customer)]) -> dict[str, str]:
    """Have a thumbnail made."""
    result = thumbnail.apply_async((image,), headers={"tenant": tenant})
    return {"id": result.id}


@api.get("/thumbnails/{task_id}")
def look(task_id: str) -> dict[str, str | None]:
    """Tell what became of it."""
    result = AsyncResult(task_id, app=app)
    return {"state": result.state, "result": result.result if result.successful() else None}


@api.get("/line")
def line(tenant: Annotated[str, Depends(customer)]) -> dict[str, float]:
    """Tell the caller how many seconds a thumbnail ordered now would have to wait."""
    return {view.level.name: view.line for view in throttle.peek("celery", thumbnail.name, tenant)}
