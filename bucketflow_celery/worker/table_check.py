"""Warns once if the workers of a namespace are configured with different tables of limits."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Any

from bucketflow.errors import StoreAccessDenied
from bucketflow_celery.config.table import LimitTable
from bucketflow_celery.store.calls import CallRunner
from bucketflow_celery.store.interfaces import Store

__all__ = ["TableCheck"]

logger = logging.getLogger("bucketflow_celery.worker")

#: Seconds between two announcements.
INTERVAL = 5.0
#: Seconds for which an announcement counts: little more, so that a worker that has stopped is soon forgotten.
TTL = 1.2 * INTERVAL


class TableCheck:
    """
    Announces the configured table of a worker, and reads those of the others.

    Args:
        store: Of the worker.
        table: The configured table.
        namespace: Its namespace, for the warning.
        call_after: Runs a callback in the worker's loop after a number of seconds.
    """

    def __init__(
        self, store: Store, table: LimitTable, namespace: str, call_after: Callable[[float, Callable[[], None]], Any]
    ) -> None:
        self._store = store
        self._digest = hashlib.sha256(json.dumps(table.dump(), sort_keys=True).encode()).hexdigest()[:16]
        self._namespace = namespace
        self._call_after = call_after
        self._runner: CallRunner | None = None
        self._warns_from = inf
        self._warned = False
        self._was_denied = False

    def start(self, runner: CallRunner) -> None:
        """Announce the table now and from now on. *runner* runs the calls to the store."""
        self._runner = runner
        # Not earlier: what was announced before it may be the table of a worker that this one has replaced.
        self._warns_from = monotonic() + TTL
        self._announce(runner)

    def close(self) -> None:
        """Announce it no more."""
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.close()

    def _announce(self, runner: CallRunner) -> None:
        if self._runner is not runner:
            return
        runner.run(self._store.announce_table(self._digest, TTL), self._on_reply)
        self._call_after(INTERVAL, lambda: self._announce(runner))

    def _on_reply(self, others: Any) -> None:
        if isinstance(others, StoreAccessDenied) and not self._was_denied:
            logger.error("workers with different limits are not noticed: %s", others)
        self._was_denied = isinstance(others, StoreAccessDenied)
        if isinstance(others, list) and others and not self._warned and monotonic() >= self._warns_from:
            self._warned = True
            logger.warning(
                "workers of namespace %s are configured with different limits: the larger one holds where they differ",
                self._namespace,
            )
