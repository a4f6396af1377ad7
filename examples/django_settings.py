"""
Throttling in a Django project: the whole configuration is in Django's settings.

In a real project the two halves are two files: ``mysite/settings.py`` and ``mysite/celery.py``.
Needs Redis, at $REDIS_URL or on localhost. In one terminal:

    celery -A django_settings worker

and in another:

    python -c "from django_settings import remind; print(remind.delay('acme', 1).get(timeout=10))"
"""

from __future__ import annotations

import os

from celery import Celery

from bucketflow_celery import Throttle, throttled_task

# --- mysite/settings.py ---

SECRET_KEY = "only for this example"
USE_TZ = True

CELERY_BROKER_URL = CELERY_RESULT_BACKEND = os.environ.get("REDIS_URL", "redis://localhost:6379/0")
CELERY_BUCKETFLOW_URL = CELERY_BROKER_URL
CELERY_BUCKETFLOW_LIMITS = {
    "all": "100/s",
    "queues": {"celery": "50/s"},
    "tenants": {"*": "10/s"},
}
CELERY_BUCKETFLOW_MAX_WAIT = 3600

# --- mysite/celery.py ---

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "django_settings")

app = Celery("mysite")
app.config_from_object("django.conf:settings", namespace="CELERY")
throttle = Throttle(app)
app.autodiscover_tasks()


@throttled_task(app=app, tenant="account", rate="2/s")
def remind(account: str, invoice: int) -> str:
    """Return the text of a reminder. A real task would send it."""
    return f"reminded {account} of invoice {invoice}"
