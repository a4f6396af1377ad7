"""
A minimal throttled app: one queue that sends 5 emails a second, independent of the number of workers.

Needs Redis, at $REDIS_URL or on localhost. In one terminal, or in several:

    celery -A plain_app worker

and in another:

    python plain_app.py
"""

from __future__ import annotations

import os

from celery import Celery

from bucketflow_celery import Throttle

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379/0")

app = Celery("plain_app", broker=REDIS_URL, backend=REDIS_URL)
app.conf.task_default_queue = "emails"
throttle = Throttle(app, limits={"queues": {"emails": "5/s"}})


@app.task
def send_email(to: str) -> str:
    """Return a confirmation. A real task would send the email."""
    return f"sent to {to}"


if __name__ == "__main__":
    results = [send_email.delay(f"user{number}@example.com") for number in range(15)]
    for result in results:
        print(result.get(timeout=30))
