"""``Throttle``: the limits of an app, and the hooks by which its workers and publishers obey them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from celery import Celery, signals
from kombu.utils.url import maybe_sanitize_url

from bucketflow.errors import ConfigError
from bucketflow.redis_client.runner import ScriptRunner
from bucketflow_celery.config.rules import TenantRule, rules_of
from bucketflow_celery.config.settings import Settings
from bucketflow_celery.config.table import LimitTable, pause_of
from bucketflow_celery.errors import ConfigErrors
from bucketflow_celery.messages.stamp import stamp
from bucketflow_celery.operations.backlog import QueueBacklog, backlog_report
from bucketflow_celery.operations.levels import LevelView, level_view
from bucketflow_celery.stats import Stats
from bucketflow_celery.store.active_limits import ActiveLimits
from bucketflow_celery.store.interfaces import Store
from bucketflow_celery.store.redis_store import RedisStore

__all__ = ["LevelView", "Throttle"]

logger = logging.getLogger(__name__)

_STEP = "bucketflow_celery.worker.bootstep:ThrottleStep"


class Throttle:
    """
    Makes every worker of *app* pass its tasks through shared limits: all, queue, tenant, task.

    Options not given here are read from ``app.conf`` under ``bucketflow_...`` when they are first needed, so a
    throttle may be made before its app is configured. Making one connects to nothing.

    Args:
        app: The Celery app; it keeps its throttle as ``app.bucketflow``.
        url: Where the buckets live, such as ``"redis://localhost/1"``.
        client: A client of redis-py instead of *url*: plain, Sentinel's or a cluster's.
        store: Any other store instead, such as :class:`bucketflow_celery.testing.MemoryStore`.
        limits: The table of limits: ``all``, ``queues``, ``tenants``, ``tasks``, and ``weights``. Each limit is
            ``"100/s"``, ``"5/m"``, ``"1000/h"``, ``"5000/d"`` or ``Limit(capacity, fill_rate)``; ``"*"`` is a level's
            default.
        on_limit: What becomes of a task that its tenant's or its own limit refuses: ``"retry"`` or ``"hold"``; with
            ``"park"`` whatever refuses it, it waits in Redis.
        on_store_error: What becomes of tasks while Redis is away: ``"hold"``, ``"admit"`` or ``"refuse"``.
        max_wait: Seconds a task may wait in all before it fails with ``ThrottleTimeout``.
        max_hold: Seconds a message is held in a worker before it goes back to the broker.
        max_countdown: Longest countdown in seconds.
        tenant: Whom a task is for where its decorator does not say: an argument's name or a callable.
        namespace: Prefix and hash tag of every key.
        timeout: Seconds to wait for an answer of Redis.
        backlog_limit: Most tasks parked of one queue; the others stay with the broker.
        lease: Seconds within which the tasks that were dispatched to a worker go to another when it dies.
        parked_state: Whether the result of a parked task says ``PARKED``, with its position and when it may start.

    Raises:
        ConfigErrors: Every mistake in what was given; what stands in ``app.conf`` is checked when a worker starts.
    """

    def __init__(  # noqa: PLR0913 - each is one option, by name
        self,
        app: Celery,
        *,
        url: str | None = None,
        client: Any = None,
        store: Store | None = None,
        limits: Mapping[str, Any] | None = None,
        on_limit: str | None = None,
        on_store_error: str | None = None,
        max_wait: float | None = None,
        max_hold: float | None = None,
        max_countdown: float | None = None,
        tenant: TenantRule = None,
        namespace: str | None = None,
        timeout: float | None = None,
        backlog_limit: int | None = None,
        lease: float | None = None,
        parked_state: bool | None = None,
    ) -> None:
        self._given = {
            "url": url,
            "limits": limits,
            "on_limit": on_limit,
            "on_store_error": on_store_error,
            "max_wait": max_wait,
            "max_hold": max_hold,
            "max_countdown": max_countdown,
            "tenant": tenant,
            "namespace": namespace,
            "timeout": timeout,
            "backlog_limit": backlog_limit,
            "lease": lease,
            "parked_state": parked_state,
        }
        Settings.read(self._given, {})
        if not isinstance(app, Celery):
            raise ConfigError("app", app, "a Celery app")
        if sum(source is not None for source in (url, client, store)) > 1:
            raise ConfigError("url, client, store", "more than one of them", "one place where the buckets live")
        if getattr(app, "bucketflow", None) is not None:
            raise ConfigError("app", app, "an app that has no throttle yet")
        self.app = app
        self._client = client
        self._store = store
        self.active_limits = ActiveLimits(lambda: app.tasks, lambda: self.settings, lambda: self.store)
        self.counters = Stats()
        app.bucketflow = self
        app.steps["consumer"].add(_STEP)
        signals.worker_init.connect(self._on_worker_init, weak=False)
        signals.worker_process_init.connect(self._on_worker_process_init, weak=False)
        signals.before_task_publish.connect(self._on_publish, weak=False)

    @cached_property
    def settings(self) -> Settings:
        """
        Return the options in force: what was given, completed from ``app.conf``.

        Raises:
            ConfigErrors: Every mistake, each naming its entry.
        """
        return Settings.read(self._given, self.app.conf)

    @cached_property
    def store(self) -> Store:
        """
        Return the place where the levels live.

        Raises:
            ConfigError: No place was given, or its URL cannot be read.
        """
        if self._store is not None:
            return self._store
        return RedisStore(self._runner(), self.settings.namespace)

    @property
    def limits(self) -> LimitTable:
        """The table in force: what the fleet was last told by :meth:`set_limits`, else what was configured."""
        return self.active_limits.limits

    def set_limits(self, limits: Mapping[str, Any] | None) -> None:
        """
        Replace the limits of all workers at once, while they run; ``None`` returns each to its configuration.

        Raises:
            ConfigErrors: Every mistake in *limits*; nothing has changed then.
            StoreUnavailable: Nothing is known to have changed.
        """
        mistakes: list[ConfigError] = []
        table = None if limits is None else LimitTable.parse(limits, mistakes)
        if mistakes:
            raise ConfigErrors(mistakes)
        self.store.set_limits(None if table is None else table.dump())

    def stats(self) -> dict[str, int]:
        """Return what this process has counted: see :class:`~bucketflow_celery.stats.Stats`."""
        return self.counters.snapshot()

    def peek(self, queue: str, task: str, tenant: str | None = None) -> list[LevelView]:
        """
        Return how the levels stand that a task would pass, root first; it takes nothing.

        Args:
            queue: The queue it would come from.
            task: Its name.
            tenant: Whom it would be for.

        Raises:
            StoreUnavailable: The store did not answer in time.
        """
        self.active_limits.refresh()
        rules = rules_of(self.app.tasks.get(task))
        path = self.limits.path(queue, tenant, task, rules.limit)
        now, states = self.store.peek(path)
        return [level_view(level, state, now) for level, state in zip(path, states, strict=True)]

    def backlog(self) -> dict[str, QueueBacklog]:
        """
        Return what is parked, by queue; queues in which nothing is parked are left out.

        Raises:
            StoreUnavailable: The store did not answer in time.
        """
        self.active_limits.refresh()
        task_limits = {name: rules_of(task).limit for name, task in self.app.tasks.items()}
        backlogs = self.store.backlogs
        found = (backlog_report(queue, backlogs.view(queue), self.limits, task_limits) for queue in backlogs.queues())
        return {backlog.queue: backlog for backlog in found if backlog.count}

    def purge(self, queue: str, *, tenant: str | None = None, task: str | None = None) -> int:
        """
        Forget parked tasks. Like ``app.control.purge`` it stores no results; what was dispatched to a worker goes on.

        Args:
            queue: Of this queue.
            tenant: Only of this tenant; ``""``: only those without one.
            task: Only of this task type.

        Returns:
            How many that were.

        Raises:
            StoreUnavailable: The store did not answer in time; some may be forgotten.
        """
        backlogs = self.store.backlogs
        return sum(
            backlogs.purge(queue, view.lane)
            for view in backlogs.view(queue).lanes
            if tenant in (None, view.lane.tenant) and task in (None, view.lane.task)
        )

    def pause(self, *, queue: str | None = None, tenant: str | None = None, task: str | None = None) -> None:
        """
        Let nothing start any more of a queue, a tenant (in all queues) or a task type; of everything if none is given.

        It holds for all workers, also those that start later, until :meth:`resume`. What has started goes on.

        Raises:
            ConfigError: More than one is given.
            StoreUnavailable: Nothing is known to have changed.
        """
        self.store.pause(pause_of(queue, tenant, task), paused=True)

    def resume(self, *, queue: str | None = None, tenant: str | None = None, task: str | None = None) -> None:
        """End a pause: see :meth:`pause`. Each is ended by itself."""
        self.store.pause(pause_of(queue, tenant, task), paused=False)

    def paused(self) -> list[str]:
        """
        Return what is paused: ``"all:"``, ``"queue:emails"``, ``"tenant:acme"``, ``"task:shop.refund"``; sorted.

        Raises:
            StoreUnavailable: The store did not answer in time.
        """
        return sorted(self.store.limits().paused)

    def close(self) -> None:
        """Close the connection to the store; it opens again when it is needed."""
        if "store" in self.__dict__:
            self.store.close()

    def _runner(self) -> ScriptRunner:
        url, timeout = self.settings.url, self.settings.timeout
        if self._client is not None:
            return ScriptRunner(self._client, timeout)
        if url is None:
            raise ConfigError("url", None, 'where the buckets live, such as "redis://localhost/1"')
        try:
            return ScriptRunner.from_url(url, timeout)
        except ValueError as error:
            raise ConfigError("url", maybe_sanitize_url(url), f"a Redis URL ({error})") from None  # it has a password

    def _on_worker_init(self, sender: Any, **_: Any) -> None:
        if sender.app is not self.app:
            return
        try:
            limited = set(self.settings.limits.levels.get("task", {}))
            __ = self.store  # a mistake in where it is must show now; whether it is up is another matter
        except ConfigError as error:
            # Celery swallows what a signal's receiver raises, short of this.
            raise SystemExit(f"bucketflow cannot start:\n{error}") from error
        unknown = limited - {*self.app.tasks, "*"}
        if unknown:
            names = ", ".join(sorted(unknown))
            logger.warning("limits['tasks'] names tasks that this worker does not have: %s", names)

    def _on_worker_process_init(self, **_: Any) -> None:
        if "store" in self.__dict__:
            self.store.after_fork()

    def _on_publish(self, sender: str, headers: dict[str, Any], body: Any, **_: Any) -> None:
        stamp(self.app, self.settings.tenant, sender, headers, body)
