"""The app of docker-compose.yml, for its workers and its publisher. The environment says where the servers are."""

from __future__ import annotations

import logging
import os

from celery import Celery

from bucketflow_celery import Throttle, throttled_task

logger = logging.getLogger(__name__)

app = Celery("shop", broker=os.environ["BROKER_URL"], backend=os.environ["RESULT_URL"])
throttle = Throttle(app, url=os.environ["BUCKETS_URL"], limits={"all": "20/s", "tenants": {"*": "5/s"}})


@throttled_task(app=app, tenant="account")
def sync_order(account: str, order: int) -> str:
    """Pretend to call an API that allows each account five calls a second."""
    logger.info("order %d of %s", order, account)
    return f"{account}/{order}"
