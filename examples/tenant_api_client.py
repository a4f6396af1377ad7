"""
A client of an external API with a quota for each customer: 5 calls a second, in bursts of up to 10.

The quota belongs to the customer's API key, so all queues and tasks share it: ``shared=True``. The customer ``acme``
has a higher limit. The backlog of one customer does not delay the others.

Needs Redis, at $REDIS_URL or on localhost, and an API: any web server will do. In three terminals:

    python -m http.server 8080
    celery -A tenant_api_client worker -Q syncs,reports
    python tenant_api_client.py
"""

from __future__ import annotations

import os
from urllib.parse import urlencode
from urllib.request import urlopen

from celery import Celery

from bucketflow_celery import Limit, Throttle, throttled_task

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379/0")
API_URL = os.environ.get("API_URL", "http://localhost:8080/")

app = Celery("tenant_api_client", broker=REDIS_URL, backend=REDIS_URL)
app.conf.task_routes = {"*.sync_order": "syncs", "*.monthly_report": "reports"}
throttle = Throttle(
    app,
    limits={
        "tenants": {
            "*": Limit(capacity=10, fill_rate=5, shared=True),
            "acme": Limit(capacity=20, fill_rate=50, shared=True),
        }
    },
)


def call_api(**query: object) -> int:
    """Call the API and return the status code."""
    with urlopen(f"{API_URL}?{urlencode(query)}", timeout=10) as response:
        return response.status


@throttled_task(app=app, tenant="customer", autoretry_for=(OSError,), retry_backoff=True)
def sync_order(customer: str, order: int) -> int:
    """Make one call for *customer*. Each retry must pass the throttle again."""
    return call_api(customer=customer, order=order)


@throttled_task(app=app, tenant="customer", cost="pages", max_wait=600)
def monthly_report(customer: str, pages: int) -> list[int]:
    """Make one call for each page, at a cost of as many tokens. Fail after a wait of 10 minutes."""
    return [call_api(customer=customer, page=page) for page in range(pages)]


if __name__ == "__main__":
    results = [sync_order.delay("acme", number) for number in range(30)]
    results += [sync_order.delay("brick", number) for number in range(10)]
    results += [monthly_report.delay("brick", 3)]
    for result in results:
        result.get(timeout=60)
    print(f"{len(results)} tasks done")
