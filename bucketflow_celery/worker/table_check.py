"""Announces a worker to the others: they count the workers, and notice if they are configured with different limits."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Any
from uuid import uuid4

from bucketflow.errors import StoreAccessDenied
from bucketflow_celery.config.table import LimitTable
from bucketflow_celery.store.calls import CallRunner
from bucketflow_celery.store.interfaces import Announced, Store

__all__ = ["TableCheck"]

logger = logging.getLogger("bucketflow_celery.worker")

#: Seconds between two announcements.
INTERVAL = 5.0
#: Seconds for which an announcement counts: little more, so that a worker that has stopped is soon forgotten.
TTL = 1.2 * INTERVAL


class TableCheck:
    """
    Announces a worker and its configured table, and reads what the others have announced.

    It warns once if the tables of a namespace differ.

    Args:
        store: Of the worker.
        table: The configured table.
        namespace: Its namespace, for the warning.
        call_after: Runs a callback in the worker's loop after a number of seconds.

    Attributes:
        on_count: Called with the number of workers that the store has seen, this one included.
    """

    def __init__(
        self, store: Store, table: LimitTable, namespace: str, call_after: Callable[[float, Callable[[], None]], Any]
    ) -> None:
        self.on_count: Callable[[int], None] = lambda _count: None
        self._worker = uuid4().hex[:12]
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
        runner.run(self._store.announce_worker(self._worker, self._digest, TTL), self._on_reply)
        self._call_after(INTERVAL, lambda: self._announce(runner))

    def _on_reply(self, reply: Any) -> None:
        if isinstance(reply, StoreAccessDenied) and not self._was_denied:
            logger.error("workers with different limits are not noticed: %s", reply)
        self._was_denied = isinstance(reply, StoreAccessDenied)
        if not isinstance(reply, Announced):
            return
        self.on_count(reply.workers)
        if reply.other_tables and not self._warned and monotonic() >= self._warns_from:
            self._warned = True
            logger.warning(
                "workers of namespace %s are configured with different limits: the larger one holds where they differ",
                self._namespace,
            )
