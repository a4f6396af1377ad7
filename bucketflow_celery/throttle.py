"""``Throttle``: the limits of an app, and the hooks into its workers and publishers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cached_property, partial
from typing import Any

from celery import Celery
from celery.local import Proxy

from bucketflow.errors import ConfigError
from bucketflow.process_bound import ProcessBound
from bucketflow.redis_client.runner import ScriptRunner
from bucketflow_celery.config.choices import OnLimit, OnStoreError
from bucketflow_celery.config.rules import TenantRule, rules_of
from bucketflow_celery.config.settings import Settings
from bucketflow_celery.config.table import LimitTable, pause_of
from bucketflow_celery.errors import ConfigErrors, LimitsChanged
from bucketflow_celery.hooks import Hooks
from bucketflow_celery.location import Location, locate
from bucketflow_celery.messages.codec import readdressed
from bucketflow_celery.operations.backlog import QueueBacklog, backlog_report
from bucketflow_celery.operations.levels import LevelView, level_view
from bucketflow_celery.operations.purge import purge_tasks
from bucketflow_celery.stats import Stats
from bucketflow_celery.store.active_limits import ActiveLimits
from bucketflow_celery.store.interfaces import Store
from bucketflow_celery.store.redis_store import RedisStore

__all__ = ["LevelView", "Throttle"]

_STEP = "bucketflow_celery.worker.bootstep:ThrottleStep"


class Throttle(ProcessBound):
    """
    Applies shared limits to the tasks of every worker of *app*: all, queue, tenant, task.

    An option that is not given is read from ``app.conf`` under ``bucketflow_...`` when it is first needed, so a
    throttle may be created before its app is configured. Creating one opens no connection.

    Args:
        app: The Celery app; it keeps its throttle as ``app.bucketflow``.
        url: The Redis that keeps the buckets, such as ``"redis://localhost/1"``; by default the broker's, else the
            result backend's. With a broker in memory they are kept in memory, too.
        url_options: Options beside those of the URL: ``master_name``, ``sentinel_kwargs``, ``ssl_ca_certs``...
        client: A client of redis-py in place of *url*: plain, from a Sentinel, or of a cluster.
        store: Any other store in their place, such as :class:`bucketflow_celery.testing.MemoryStore`.
        limits: The table of limits: ``all``, ``queues``, ``tenants``, ``tasks``, ``weights``. A limit is ``"100/s"``,
            ``"5/m"``, ``"1000/h"``, ``"5000/d"`` or ``Limit(capacity, fill_rate)``; ``"*"`` is a level's default.
        on_limit: What happens to a task refused by its tenant or its task type: ``"retry"`` defers it, ``"hold"``
            keeps it in the worker. ``"park"`` stores a task in Redis, whichever level refuses it.
        on_store_error: What happens to tasks while Redis is away: ``"hold"``, ``"admit"``, ``"refuse"`` or ``"local"``.
        local_share: Share of each limit by which each worker goes meanwhile under ``"local"``, above 0 and at most 1.
            By default one over the number of workers last seen.
        max_wait: Maximum total wait in seconds before a task fails with ``ThrottleTimeout``.
        hold_limit: Most messages that a worker holds for tenants and task types.
        max_hold: Seconds that a message is held in a worker before it is requeued.
        max_countdown: Longest countdown in seconds.
        consumer_timeout: RabbitMQ's, in seconds, if it is not the default.
        tenant: How to find the tenant of a task whose decorator does not say: the name of an argument or a callable.
        tenant_inherits: Whether a task that a running task publishes has the tenant of that one, if it has none of its
            own. ``False`` by default.
        namespace: Prefix and hash tag of every key.
        timeout: Seconds within which Redis must accept a connection, and answer a call.
        backlog_limit: Most tasks parked of one queue; further ones stay with the broker.
        lease: Seconds within which the parked tasks of a killed worker go to another one.
        parked_state: Whether the result of a parked task has the state ``PARKED``, with its position and expected
            start.

    Raises:
        ConfigErrors: Every mistake in the arguments. Options in ``app.conf`` are checked when a worker starts.
    """

    _instead = "each process that imports its app creates one"

    def __init__(  # noqa: PLR0913 - each is one option, by name
        self,
        app: Celery,
        *,
        url: str | None = None,
        url_options: Mapping[str, Any] | None = None,
        client: Any = None,
        store: Store | None = None,
        limits: Mapping[str, Any] | None = None,
        on_limit: OnLimit | None = None,
        on_store_error: OnStoreError | None = None,
        local_share: float | None = None,
        max_wait: float | None = None,
        max_hold: float | None = None,
        hold_limit: int | None = None,
        max_countdown: float | None = None,
        consumer_timeout: float | None = None,
        tenant: TenantRule = None,
        tenant_inherits: bool | None = None,
        namespace: str | None = None,
        timeout: float | None = None,
        backlog_limit: int | None = None,
        lease: float | None = None,
        parked_state: bool | None = None,
    ) -> None:
        arguments = locals()
        self._given = {field.name: arguments[field.name] for field in fields(Settings)}
        Settings.read(self._given, {})
        if not isinstance(app, Celery):
            raise ConfigError("app", app, "a Celery app")
        if isinstance(app, Proxy):  # such as celery.current_app
            app = app._get_current_object()  # noqa: SLF001 - Celery has no other way
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
        self._hooks = Hooks(self)

    @cached_property
    def settings(self) -> Settings:
        """
        The options in force: the arguments, completed from ``app.conf``.

        Raises:
            ConfigErrors: Every mistake, each naming its entry.
        """
        return Settings.read(self._given, self.app.conf)

    @cached_property
    def store(self) -> Store:
        """
        The store of the levels.

        Raises:
            ConfigError: No store was given, or its URL cannot be parsed.
        """
        if self._store is not None:
            return self._store
        if self._client is not None:
            return RedisStore(ScriptRunner(self._client, self.settings.timeout), self.settings.namespace)
        return locate(self.settings, self.app.conf).store(self.settings.timeout, self.settings.namespace)

    @property
    def location(self) -> Location | None:
        """Where the levels live; ``None`` with a client or a store. Raises ``ConfigError``: see :func:`locate`."""
        return locate(self.settings, self.app.conf) if self._store is None and self._client is None else None

    @property
    def limits(self) -> LimitTable:
        """
        The table in force: the last one set with :meth:`set_limits`, else the configured one.

        In a worker it is what the worker goes by. Any other process reads it from the store each time.

        Raises:
            StoreUnavailable: The store did not answer in time.
        """
        if not self.active_limits.is_followed:
            self.active_limits.refresh()
        return self.active_limits.table

    def set_limits(self, limits: Mapping[str, Any] | None, *, version: str | None = None) -> None:
        """
        Replace the limits of all workers at once, while they run; ``None`` restores each worker's configured ones.

        Args:
            limits: The whole table.
            version: The ``limits.version`` that *limits* was made from: nothing changes unless it is still in force.
                ``None``: replace any table.

        Raises:
            ConfigErrors: Every mistake in *limits*; nothing has changed.
            LimitsChanged: Another version is in force; nothing has changed.
            StoreUnavailable: The store did not answer; whether the limits have changed is unknown.
        """
        if version is not None and not isinstance(version, str):
            raise ConfigError("version", version, "the version of a table, such as throttle.limits.version, or None")
        mistakes: list[ConfigError] = []
        table = None if limits is None else LimitTable.parse(limits, mistakes)
        if mistakes:
            raise ConfigErrors(mistakes)
        stale = self.store.set_limits(None if table is None else table.dump(), version)
        if stale is not None and version is not None:
            raise LimitsChanged(version, stale.version)
        if table is not None and not self.active_limits.is_followed:  # a worker warns when it takes over the table
            self.active_limits.warn(table)
        self.active_limits.refresh()

    def stats(self) -> dict[str, Any]:
        """Return the counters of this process: see :class:`~bucketflow_celery.stats.Stats`."""
        return self.counters.snapshot()

    def peek(self, queue: str, task: str, tenant: str | None = None) -> list[LevelView]:
        """
        Return the state of the levels that a task would pass, root first. Takes no tokens.

        Args:
            queue: The queue of the task.
            task: Its name.
            tenant: Its tenant; ``None`` if it has none.

        Raises:
            StoreUnavailable: The store did not answer in time.
        """
        self.active_limits.refresh()
        rules = rules_of(self.app.tasks.get(task))
        path = self.active_limits.table.path(queue, tenant, task, rules.limit)
        now, states = self.store.peek(path)
        return [level_view(level, state, now) for level, state in zip(path, states, strict=True)]

    def backlog(self) -> dict[str, QueueBacklog]:
        """
        Return the parked tasks by queue; queues without parked tasks are left out.

        Raises:
            StoreUnavailable: The store did not answer in time.
        """
        self.active_limits.refresh()
        task_limits = {name: rules_of(task).limit for name, task in self.app.tasks.items()}
        backlogs, limits = self.store.backlogs, self.active_limits.table
        found = (backlog_report(queue, backlogs.view(queue), limits, task_limits) for queue in backlogs.queues())
        return {backlog.queue: backlog for backlog in found if backlog.count}

    def purge(self, queue: str, *, tenant: str | None = None, task: str | None = None) -> int:
        """
        End the tasks of a queue that wait for their limits now, without results: see docs/parking.md for when.

        Args:
            queue: The queue.
            tenant: Only tasks of this tenant; ``""``: only tasks without a tenant.
            task: Only tasks with this name.

        Returns:
            The number of parked tasks, which end at once. Workers count the others, as ``purged``.

        Raises ``ConfigError`` if a name is not a string, and ``StoreUnavailable``: some tasks may have ended.
        """
        return purge_tasks(self.store, queue, tenant, task)

    def move(self, queue: str, to: str, *, tenant: str | None = None, task: str | None = None) -> int:
        """
        Move parked tasks of *queue* to the backlog of *to*, behind the tasks of the same tenant and task type there.

        Order, priorities, headers, results and waiting times stay. A retry of a moved task goes to *to*. Each task is
        in one of the two at any time. Dispatched tasks return to *queue* if their worker ends: then move again.

        Args:
            queue: The queue.
            to: Another queue, whose workers park tasks.
            tenant: Only tasks of this tenant; ``""``: only tasks without a tenant.
            task: Only tasks with this name.

        Returns:
            The number of moved tasks.

        Raises:
            ConfigError: *to* is no name of another queue.
            StoreUnavailable: The store did not answer in time; some tasks may have been moved.
        """
        if not isinstance(to, str) or to in ("", queue):
            raise ConfigError("to", to, "the name of another queue")
        lanes = self.store.backlogs.view(queue).select(tenant, task)
        return sum(self.store.backlogs.move(queue, to, lane, partial(readdressed, queue=to)) for lane in lanes)

    def pause(self, *, queue: str | None = None, tenant: str | None = None, task: str | None = None) -> None:
        """
        Stop starting tasks of a queue, of a tenant in all queues, or of a task type; without arguments, all tasks.

        A pause holds for all workers, also for those that start later, until :meth:`resume`. Running tasks go on.

        Raises:
            ConfigError: More than one argument is given.
            StoreUnavailable: The store did not answer; whether the pause holds is unknown.
        """
        self.store.pause(pause_of(queue, tenant, task), paused=True)

    def resume(self, *, queue: str | None = None, tenant: str | None = None, task: str | None = None) -> None:
        """End the pause that :meth:`pause` began with the same arguments. Raises as :meth:`pause` does."""
        self.store.pause(pause_of(queue, tenant, task), paused=False)

    def paused(self) -> list[str]:
        """
        Return what is paused, sorted: ``"all:"``, ``"queue:emails"``, ``"tenant:acme"``, ``"task:shop.refund"``.

        Raises:
            StoreUnavailable: The store did not answer in time.
        """
        return sorted(self.store.limits().paused)

    def close(self) -> None:
        """Close the connections to the store. The next call opens new ones."""
        if "store" in self.__dict__:
            self.store.close()
