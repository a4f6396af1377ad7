"""What a throttle does on Celery's signals, in the workers and in the publishers of its app."""

from __future__ import annotations

import logging
import re
from typing import Any

from celery import signals

from bucketflow.errors import ConfigError, StoreAccessDenied, StoreUnavailable
from bucketflow_celery.config.built_in_tasks import BATCHES
from bucketflow_celery.messages.publisher import is_published_by, track_publishing
from bucketflow_celery.messages.stamp import stamp

__all__ = ["Hooks"]

logger = logging.getLogger("bucketflow_celery.throttle")


#: What a server says to mistakes in a URL that waiting does not end, and what would be right.
_MISTAKES = (
    ("index is out of range|value is out of range", "the number of a database that the server has"),
    (
        "SELECT is not allowed in cluster mode",
        "redis+cluster:// or no database number: the server belongs to a cluster",
    ),
    ("cluster support disabled", "redis:// in place of redis+cluster://: the server belongs to no cluster"),
    ("unknown command .?sentinel", "the addresses of sentinels, or redis:// in place of sentinel://"),
    ("unknown command", "the address of a Redis server, or sentinel:// for sentinels"),
    (
        "username-password pair|authentication required|unauthenticated|already authenticated|WRONGPASS",
        "the user and the password that the server knows",
    ),
)


class Hooks:
    """
    The receivers of one throttle. Celery's signals reach those of all apps in the process.

    Args:
        throttle: The throttle, which keeps this object: Celery has only weak references to it.
    """

    def __init__(self, throttle: Any) -> None:
        self._throttle = throttle
        track_publishing(throttle.app)
        # Each with an id: Celery before 5.7 takes the same method of two objects for one receiver.
        signals.worker_init.connect(self._on_worker_init, dispatch_uid=id(self))
        signals.worker_process_init.connect(self._on_worker_process_init, dispatch_uid=id(self))
        signals.before_task_publish.connect(self._on_publish, dispatch_uid=id(self))

    def _on_worker_init(self, sender: Any, **_: Any) -> None:
        throttle = self._throttle
        if sender.app is not throttle.app:
            return
        try:
            limited = set(throttle.settings.limits.levels.get("task", {}))
            self._check_access()
        except (ConfigError, StoreAccessDenied) as error:
            # Celery ignores exceptions of signal receivers, except for this one.
            raise SystemExit(f"bucketflow cannot start:\n{error}") from error
        unknown = limited - {*throttle.app.tasks, "*"}
        throttle.active_limits.warn(throttle.settings.limits)
        if unknown:
            names = ", ".join(sorted(unknown))
            logger.warning("limits['tasks'] names tasks that this worker does not have: %s", names)
        batches = limited & BATCHES.keys()
        if batches:
            names = ", ".join(sorted(batches))
            logger.warning("limits['tasks'] names %s, which passes the limits of the task that it calls instead", names)

    def _check_access(self) -> None:
        # A wrong URL and missing rights must be reported now; whether the server is up is another matter.
        store = self._throttle.store
        try:
            store.check_access(parks=self._throttle.active_limits.parks)
        except StoreAccessDenied:
            raise
        except StoreUnavailable as error:
            location = self._throttle.location
            expected = next((right for said, right in _MISTAKES if re.search(said, error.reason, re.IGNORECASE)), None)
            if location is not None and expected is not None:
                raise location.mistake(f"{expected} ({error.reason})") from None
            logger.debug("access not checked: %s", error)
        finally:
            store.close()  # the pool's processes are about to be forked

    def _on_worker_process_init(self, **_: Any) -> None:
        if "store" in vars(self._throttle):
            self._throttle.store.after_fork()

    def _on_publish(self, sender: str, headers: dict[str, Any], body: Any, **_: Any) -> None:
        throttle = self._throttle
        if is_published_by(throttle.app, sender):
            settings = throttle.settings
            stamp(throttle.app, settings.tenant, sender, headers, body, inherits=settings.tenant_inherits)
