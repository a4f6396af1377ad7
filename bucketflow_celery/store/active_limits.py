"""Which limits are in force here, and what they mean for a task and for a tenant that waits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from bucketflow.errors import BucketflowError, ConfigError
from bucketflow_celery.config.levels import Level
from bucketflow_celery.config.policy import ThrottlePolicy
from bucketflow_celery.config.rules import cost_of, rules_of, tenant_of
from bucketflow_celery.config.settings import Settings
from bucketflow_celery.config.table import LimitTable
from bucketflow_celery.errors import ConfigErrors
from bucketflow_celery.scheduling.model import TaskSpec, TenantSpec, TenantSummary
from bucketflow_celery.store.interfaces import Store

__all__ = ["ActiveLimits"]

logger = logging.getLogger(__name__)


class ActiveLimits:
    """
    The limits that one process goes by.

    Args:
        tasks: Returns the tasks of the Celery app, by name.
        settings: Returns the options in force.
        store: Returns where the fleet's limits are kept.

    Attributes:
        version: Of the fleet's limits, as last read.
    """

    def __init__(
        self, tasks: Callable[[], Mapping[str, Any]], settings: Callable[[], Settings], store: Callable[[], Store]
    ) -> None:
        self._tasks = tasks
        self._settings = settings
        self._store = store
        self._table: LimitTable | None = None
        self.version = ""

    @property
    def limits(self) -> LimitTable:
        """The table in force: what the fleet was last told, else what was configured."""
        return self._table if self._table is not None else self._settings().limits

    @property
    def parks(self) -> bool:
        """Whether any task of this app may be parked."""
        return "park" in {self._settings().on_limit, *(rules_of(task).on_limit for task in self._tasks().values())}

    def refresh(self) -> None:
        """
        Read the fleet's limits again.

        Raises:
            StoreUnavailable: The store did not answer in time.
        """
        version, raw, paused = self._store().limits()
        mistakes: list[ConfigError] = []
        table = self._settings().limits if raw is None else LimitTable.parse(raw, mistakes)
        if mistakes:
            logger.error("the fleet's new limits cannot be read, the old ones stay: %s", ConfigErrors(mistakes))
            table = self.limits
        self._table = replace(table, paused=paused)
        self.version = version

    def resolve(self, task: Any, headers: Mapping[str, Any], args: Any, kwargs: Any, queue: str) -> ThrottlePolicy:
        """
        Return what a message needs in order to start.

        Raises:
            ConfigError: Its tenant or its cost cannot be told from its arguments.
        """
        try:
            return self._resolve(task, headers, args, kwargs, queue)
        except BucketflowError:
            raise
        except Exception as error:  # what one message holds must not end the worker, and then the next that gets it
            raise ConfigError(
                f"a message for {task.name}", repr(error), "a tenant and a cost that can be told"
            ) from error

    def _resolve(self, task: Any, headers: Mapping[str, Any], args: Any, kwargs: Any, queue: str) -> ThrottlePolicy:
        rules, settings, limits = rules_of(task), self._settings(), self.limits
        whom = tenant_of(task, settings.tenant, headers, args, kwargs)
        cost = cost_of(rules.cost, task.run, args, kwargs)
        path = limits.path(queue, whom, task.name, rules.limit) if cost else ()
        return ThrottlePolicy(
            path,
            cost,
            rules.max_wait if rules.max_wait is not None else settings.max_wait,
            rules.on_limit or settings.on_limit,
            whom,
            limits.pause(queue, whom, task.name),
        )

    def queue_path(self, queue: str) -> tuple[Level, ...]:
        """Return the levels that all tasks of *queue* pass, root first."""
        return tuple(level for level in self.limits.path(queue, None, "") if level.name in ("all", "queue"))

    def tenant_spec(self, queue: str, known: TenantSummary) -> TenantSpec:
        """Return what this process says about a tenant of *queue* that has tasks parked."""
        tenant, limits, types, own = known.tenant or None, self.limits, [], None
        for task, ranks in known.types:
            path = limits.path(queue, tenant, task, rules_of(self._tasks().get(task)).limit)
            levels = {level.name: level for level in path}
            own = levels.get("tenant")
            is_paused = limits.pause(queue, tenant, task) is not None
            types.append(TaskSpec(task, ranks, levels.get("task"), task in self._tasks(), is_paused))
        return TenantSpec(known.tenant, tuple(types), limits.weight(known.tenant), own)
