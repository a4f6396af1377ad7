"""The limits in force in one process, and what they mean for one task and for one tenant."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import inf
from typing import Any

from bucketflow.errors import BucketflowError, ConfigError
from bucketflow.fork import reset_after_fork
from bucketflow.limit import SECOND
from bucketflow_celery.config import exemption
from bucketflow_celery.config.built_in_tasks import is_built_in
from bucketflow_celery.config.choices import OnLimit
from bucketflow_celery.config.levels import Level, ThrottlePolicy
from bucketflow_celery.config.rules import cost_of, rules_of, tenant_of
from bucketflow_celery.config.settings import Settings
from bucketflow_celery.config.table import DEFAULT_WEIGHT, LimitTable
from bucketflow_celery.config.task_calls import calls_of, cost_of_calls, tenant_of_calls
from bucketflow_celery.errors import ConfigErrors
from bucketflow_celery.scheduling.model import TaskSpec, TenantSpec, TenantSummary
from bucketflow_celery.scheduling.purges import NO_PURGES, PurgeMarks
from bucketflow_celery.store.interfaces import Store
from bucketflow_celery.store.limit_warnings import warn_of_small_capacities

__all__ = ["ActiveLimits"]

logger = logging.getLogger("bucketflow_celery.throttle")


#: Seconds after which the version is compared with the store's, if no call has done so: a notification may be lost.
VERSION_CHECK_INTERVAL = 5.0
#: The same while something is paused: its tasks start soon after the pause has ended.
PAUSED_CHECK_INTERVAL = 0.5


class ActiveLimits:
    """
    The fleet's limits as last read, or the configured ones.

    Args:
        tasks: Returns the tasks of the Celery app, by name.
        settings: Returns the options in force.
        store: Returns where the fleet's limits are kept.
        monotonic: Returns the time in seconds.

    Attributes:
        purges: The purge marks of the fleet, as last read.
        checked_at: When the version was last compared with the store's, in seconds of the monotonic clock.
        is_stale: Whether a notification has said that other limits may be in force.
        is_followed: Whether a worker of this process keeps them up to date.
    """

    def __init__(
        self,
        tasks: Callable[[], Mapping[str, Any]],
        settings: Callable[[], Settings],
        store: Callable[[], Store],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tasks = tasks
        self._settings = settings
        self._store = store
        self._table: LimitTable | None = None
        self._raw: Mapping[str, Any] | None = None
        self._monotonic = monotonic
        self._clocks: tuple[float, int] | None = None  # seconds of the monotonic clock, and µs of the store's
        self.purges = NO_PURGES
        self.checked_at = -inf
        self.is_stale = False
        self.is_followed = False
        reset_after_fork(self)

    def after_fork(self) -> None:
        """Know that no worker runs in this process: the child of a pool has only what its parent last read."""
        self.is_followed = False

    @property
    def table(self) -> LimitTable:
        """The table in force: the fleet's if one was set, else the configured one."""
        return self._table if self._table is not None else self._settings().limits

    @property
    def version(self) -> str:
        """The version of the fleet's limits, as last read."""
        return "" if self._table is None else self._table.version

    @property
    def parks(self) -> bool:
        """Whether any task of this app may be parked."""
        return "park" in {self._settings().on_limit, *(rules_of(task).on_limit for task in self._tasks().values())}

    def refresh(self) -> None:
        """
        Read the fleet's limits again. Limits that cannot be parsed are logged, and the previous ones stay in force.

        A worker warns of small capacities in a table that it takes over.

        Raises:
            StoreUnavailable: The store did not answer in time.
        """
        version, raw, paused = self._store().limits()
        if self._table is not None and self._table.version == version:
            return
        asked_at = self._monotonic()
        now, marks = self._store().purges()
        mistakes: list[ConfigError] = []
        table = self._settings().limits if raw is None else LimitTable.parse(raw, mistakes)
        if mistakes:
            logger.error("new limits cannot be parsed, the previous ones stay in force: %s", ConfigErrors(mistakes))
            table = self.table
        elif self.is_followed and raw is not None and raw != self._raw:
            self.warn(table)
        self._raw, self._table = raw, replace(table, paused=paused, version=version)
        self.purges, self._clocks = PurgeMarks(marks, now), (asked_at, now)

    def store_time(self, at: float) -> int | None:
        """
        Return the µs of the store's clock at *at*, in seconds of the monotonic clock; ``None``: that is not known.

        It is ahead by at most one round trip, so that a task that came after a purge does not seem to be older.
        """
        if self._clocks is None:
            return None
        read_at, now = self._clocks
        return now + round((at - read_at) * SECOND)

    def warn(self, table: LimitTable) -> None:
        """Log the capacities of *table* that are too small for the tasks of this app, or for busy workers."""
        warn_of_small_capacities(table, self._tasks())

    def needs_check(self, now: float) -> bool:
        """Return whether the version should be compared at *now*: after a notification, or periodically."""
        return self.is_stale or now >= self.next_check

    @property
    def next_check(self) -> float:
        """When the version should be compared next, in seconds of the monotonic clock."""
        return self.checked_at + (PAUSED_CHECK_INTERVAL if self.table.paused else VERSION_CHECK_INTERVAL)

    def resolve(self, task: Any, headers: Mapping[str, Any], args: Any, kwargs: Any, queue: str) -> ThrottlePolicy:
        """
        Return what limits a message.

        Args:
            task: The task it calls.
            headers: Of the message.
            args: Positional arguments.
            kwargs: Keyword arguments.
            queue: The queue it was delivered from.

        Returns:
            Of a ``celery.map``, a ``celery.starmap`` or a chunk: what limits all its calls together. Other tasks of
            Celery's own are not limited, unless the table has an entry for them.

        Raises:
            ConfigError: Its tenant or its cost cannot be determined from its arguments.
        """
        settings, table, count = self._settings(), self.table, 1
        try:
            if is_built_in(task.name):
                calls = calls_of(self._tasks(), task, args, kwargs)
                if not calls or table.frees(calls[0].task.name):
                    return self._free(task, queue)
                task, count = calls[0].task, len(calls)
                tenant, cost = tenant_of_calls(calls, settings.tenant, headers), cost_of_calls(calls)
                rules = rules_of(task)
            else:
                rules = rules_of(task)
                tenant = tenant_of(task, settings.tenant, headers, args, kwargs)
                cost = cost_of(rules.cost, task.run, args, kwargs)
            max_wait = rules.max_wait
            if max_wait is None and not is_built_in(task.name):  # a chord whose unlocking task fails waits for ever
                max_wait = settings.max_wait
            return ThrottlePolicy(
                table.path(queue, tenant, task.name, rules.limit) if cost else (),
                cost,
                None if headers.get(exemption.HEADER) else max_wait,
                rules.on_limit or settings.on_limit,
                tenant,
                table.pause(queue, tenant, task.name) if table.paused else None,
                task.name,
                count,
                self.purges.purged_at(queue, tenant, task.name) if self.purges.latest else 0,
            )
        except BucketflowError:
            raise
        except Exception as error:  # the content of one message must end neither this worker nor the next one
            raise ConfigError(
                f"a message for {task.name}", repr(error), "a tenant and a cost that can be determined"
            ) from error

    def _free(self, task: Any, queue: str) -> ThrottlePolicy:
        # It is never parked: it need not wait for a limit, and in a backlog it would wait for a worker's next poll.
        on_limit: OnLimit = "hold" if self._settings().on_limit == "hold" else "retry"
        paused = self.table.pause(queue, None, task.name)
        return ThrottlePolicy((), 0.0, on_limit=on_limit, paused=paused, task=task.name)

    def can_run(self, task: str) -> bool:
        """Return whether this worker has the task type *task*."""
        return task in self._tasks()

    def queue_path(self, queue: str) -> tuple[Level, ...]:
        """Return the levels that all tasks of *queue* pass, root first."""
        return tuple(level for level in self.table.path(queue, None, "") if level.blocks_queue)

    def tenant_spec(self, queue: str, summary: TenantSummary) -> TenantSpec:
        """Return the limits, weight and pauses of a tenant of *queue* that has parked tasks."""
        tenant, table, tasks, types, own = summary.tenant or None, self.table, self._tasks(), [], None
        for name, ranks in summary.types:
            if name not in tasks:
                continue
            path = table.path(queue, tenant, name, rules_of(tasks.get(name)).limit)
            levels = {level.name: level for level in path}
            own = levels.get("tenant", own)
            is_paused = bool(table.paused) and table.pause(queue, tenant, name) is not None
            types.append(TaskSpec(name, ranks, levels.get("task"), is_paused))
        weight = table.weight(summary.tenant) if table.weights else DEFAULT_WEIGHT
        return TenantSpec(summary.tenant, tuple(types), weight, own)
