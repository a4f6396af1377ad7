"""``Throttle``: the limits of an app, and the hooks by which its workers and publishers obey them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from time import monotonic
from typing import Any

from celery import Celery, signals
from kombu.utils.url import maybe_sanitize_url

from bucketflow.core import tokens_at
from bucketflow.errors import BucketflowError, ConfigError, StoreUnavailable
from bucketflow.limit import SECOND
from bucketflow.redis_calls import ScriptRunner
from bucketflow_celery.admission import Ask, LevelState
from bucketflow_celery.backlog import Candidate, Known, TaskType
from bucketflow_celery.errors import ConfigErrors
from bucketflow_celery.limits import Level, LimitTable, check_cost
from bucketflow_celery.lines import Passage
from bucketflow_celery.outage import Outage
from bucketflow_celery.queues import queue_of
from bucketflow_celery.rules import cost_of
from bucketflow_celery.settings import Settings, TenantRule
from bucketflow_celery.stats import Stats
from bucketflow_celery.store import RedisStore, Store
from bucketflow_celery.tenant import rules_of, stamp, tenant_of
from bucketflow_celery.ticket import HEADER, Ticket

__all__ = ["LevelView", "Throttle"]

logger = logging.getLogger(__name__)

_STEP = "bucketflow_celery.worker:ThrottleStep"


@dataclass(frozen=True, slots=True)
class LevelView:
    """
    A level, seen from outside.

    Attributes:
        level: Its name, bucket and limit.
        tokens: Tokens in the bucket now.
        line: Seconds until the last promised place of its line.
    """

    level: Level
    tokens: float
    line: float


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
        limits: The table of limits: ``all``, ``queues``, ``tenants``, ``tasks``. Each limit is ``"100/s"``,
            ``"5/m"``, ``"1000/h"``, ``"5000/d"`` or ``Limit(capacity, fill_rate)``; ``"*"`` is a level's default.
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
        lease: Seconds within which the tasks that were handed to a worker go to another when it dies.
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
        self.version = ""
        self._table: LimitTable | None = None
        self.counters = Stats()
        self._leaving = Outage("hold")
        app.bucketflow = self
        app.steps["consumer"].add(_STEP)
        signals.worker_init.connect(self._on_worker_init, weak=False)
        signals.worker_process_init.connect(self._on_worker_process_init, weak=False)
        signals.before_task_publish.connect(self._on_publish, weak=False)
        signals.task_revoked.connect(self._on_revoked, weak=False)

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
        return self._table if self._table is not None else self.settings.limits

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
        self.renew()
        rules = rules_of(self.app.tasks.get(task))
        path = self.limits.path(queue, tenant, task, rules.limit)
        now, states = self.store.peek(path)
        return [_view(level, state.under(level.limit, now), now) for level, state in zip(path, states, strict=True)]

    def passage(self, task: Any, headers: Mapping[str, Any], args: Any, kwargs: Any, queue: str) -> Passage:
        """
        Return what a message needs in order to start. Used by the worker.

        Raises:
            ConfigError: Its tenant or its cost cannot be told from its arguments.
            CostExceedsCapacity: A level on its path can never grant its cost.
        """
        try:
            return self._passage(task, headers, args, kwargs, queue)
        except BucketflowError:
            raise
        except Exception as error:  # what one message holds must not end the worker, and then the next that gets it
            raise ConfigError(
                f"a message for {task.name}", repr(error), "a tenant and a cost that can be told"
            ) from error

    def _passage(self, task: Any, headers: Mapping[str, Any], args: Any, kwargs: Any, queue: str) -> Passage:
        rules = rules_of(task)
        whom = tenant_of(task, self.settings.tenant, headers, args, kwargs)
        cost = cost_of(rules.cost, task.run, args, kwargs)
        path = self.limits.path(queue, whom, task.name, rules.limit) if cost else ()
        check_cost(path, cost)
        max_wait = rules.max_wait if rules.max_wait is not None else self.settings.max_wait
        on_limit = rules.on_limit or self.settings.on_limit
        return Passage(path, cost, max_wait, on_limit, whom, self.limits.pause(queue, whom, task.name))

    @property
    def parks(self) -> bool:
        """Whether any task of this app may be parked."""
        parking = {rules_of(task).on_limit for task in self.app.tasks.values()}
        return "park" in parking | {self.settings.on_limit}

    def common(self, queue: str) -> tuple[Level, ...]:
        """Return the levels that all tasks of *queue* pass, root first. Used by the worker."""
        return tuple(level for level in self.limits.path(queue, None, "") if level.name in ("all", "queue"))

    def candidate(self, queue: str, known: Known) -> Candidate:
        """Return what this worker says about a tenant of *queue* that has tasks parked. Used by the worker."""
        tenant, table = known.tenant or None, self.limits
        types, own = [], None
        for task, ranks in known.types:
            path = table.path(queue, tenant, task, rules_of(self.app.tasks.get(task)).limit)
            levels = {level.name: level for level in path}
            own = levels.get("tenant")
            pause = table.pause(queue, tenant, task)
            kind = TaskType(task, ranks, levels.get("task"), task in self.app.tasks, pause is not None)
            types.append(kind)
        return Candidate(known.tenant, tuple(types), table.weight(known.tenant), own)

    def close(self) -> None:
        """Close the connection to the store; it opens again when it is needed."""
        if "store" in self.__dict__:
            self.store.close()

    def renew(self) -> None:
        """
        Read the fleet's limits again. Used by the worker when it hears of another version.

        Raises:
            StoreUnavailable: The store did not answer in time.
        """
        version, raw, paused = self.store.limits()
        mistakes: list[ConfigError] = []
        table = self.settings.limits if raw is None else LimitTable.parse(raw, mistakes)
        if mistakes:
            logger.error("the fleet's new limits cannot be read, the old ones stay: %s", ConfigErrors(mistakes))
            table = self.limits
        self._table = replace(table, paused=paused)
        self.version = version

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
        # A task that retries itself brings along the headers it came with. Its ticket was for the turn it has had.
        headers.pop(HEADER, None)
        stamp(self.app, self.settings.tenant, sender, headers, body)

    def _on_revoked(self, sender: Any, request: Any, **_: Any) -> None:
        ticket = Ticket.read(request.get(HEADER))
        if not ticket.dues or sender.app is not self.app or self._leaving.until > monotonic():
            return  # a store that is away must not stop the worker once for each of many who are revoked
        queue = queue_of(request.delivery_info or {}, {}, self.app.amqp.queues.consume_from)
        try:
            passage = self.passage(sender, request.__dict__, request.args, request.kwargs, queue)
            self.store.leave(Ask(passage.path, passage.cost, ticket.at(passage.path)))
            self._leaving.recovered()
        except BucketflowError as error:
            if isinstance(error, StoreUnavailable):
                self._leaving.failed(monotonic())
            logger.warning("%s was revoked, its place in the line stays reserved: %s", request.id, error)


def _view(level: Level, state: LevelState, now: int) -> LevelView:
    return LevelView(level, tokens_at(level.limit, state.full_at, now), max(0.0, state.line_at - now) / SECOND)
