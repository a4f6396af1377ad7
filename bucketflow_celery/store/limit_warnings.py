"""Warnings of limits that are valid and unlikely to be meant."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from bucketflow_celery.config.capacity_check import LimitEntry, below_cost, below_rate
from bucketflow_celery.config.rules import rules_of
from bucketflow_celery.config.table import LimitTable

__all__ = ["warn_of_small_capacities"]

logger = logging.getLogger("bucketflow_celery.throttle")

#: Most limits that are named one by one, and most tasks that are named with each.
MAX_LIMITS, MAX_TASKS = 10, 3


def warn_of_small_capacities(table: LimitTable, tasks: Mapping[str, Any]) -> None:
    """
    Log the limits under which a task always fails, and those from which busy workers cannot take all tokens.

    Args:
        table: The table of limits.
        tasks: The tasks of the app, by name.
    """
    rules = {name: rules_of(task) for name, task in tasks.items()}
    too_small, too_slow = below_cost(table, rules), below_rate(table, rules)
    for entry in too_small[:MAX_LIMITS]:
        capacity = entry.limit.capacity
        logger.warning("%s has a capacity of %.12g, tasks that cost more fail: %s", entry.name, capacity, _costs(entry))
    for entry in too_slow[:MAX_LIMITS]:
        capacity, usable = entry.limit.capacity, entry.usable_capacity
        logger.warning(
            "%s has a capacity of %.12g, busy workers leave tokens unused below %.12g", entry.name, capacity, usable
        )
    more = sum(max(0, len(entries) - MAX_LIMITS) for entries in (too_small, too_slow))
    if more:
        logger.warning("limits with too small a capacity that are not named here: %d", more)


def _costs(entry: LimitEntry) -> str:
    """Return the tasks whose cost *entry* can never grant, each with its cost."""
    named = [f"{task} ({cost:.12g})" for task, cost in entry.too_expensive.items()]
    more = f" and {len(named) - MAX_TASKS} more" if len(named) > MAX_TASKS else ""
    return ", ".join(named[:MAX_TASKS]) + more
