"""Capacities that are valid and yet too small: below the cost of a task, or below what a busy worker can use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bucketflow_celery.config.built_in_tasks import is_built_in
from bucketflow_celery.config.limit import Limit
from bucketflow_celery.config.rules import NO_RULES, TaskRules
from bucketflow_celery.config.table import SECTIONS, LimitTable

__all__ = ["LimitEntry", "below_cost", "below_rate", "entries_of"]

#: A capacity below the fill rate of 1 / USABLE_RATE s is too small. For so long a busy worker may have no free slot.
USABLE_RATE = 10.0
#: Stands for the tasks of other processes, if this one has none.
_ANY_TASK = "a task without a cost of its own"


@dataclass(frozen=True, slots=True)
class LimitEntry:
    """
    A limit, and the tasks that may pass it.

    Attributes:
        name: Where the limit stands: ``limits['queues']['emails']``, or ``shop.refund: rate`` for a decorator's.
        limit: The limit.
        costs: Constant costs of these tasks in tokens, by name, highest first.
    """

    name: str
    limit: Limit
    costs: Mapping[str, float]

    @property
    def is_below_cost(self) -> bool:
        """Whether a task always fails under the limit."""
        return next(iter(self.costs.values()), 0.0) > self.limit.capacity

    @property
    def too_expensive(self) -> dict[str, float]:
        """The costs above the capacity, by name of the task, highest first."""
        return {task: cost for task, cost in self.costs.items() if cost > self.limit.capacity}

    @property
    def usable_capacity(self) -> float:
        """The smallest capacity from which busy workers take all tokens."""
        return self.limit.fill_rate / USABLE_RATE


def below_cost(table: LimitTable, rules: Mapping[str, TaskRules]) -> list[LimitEntry]:
    """Return the limits under which a task always fails; arguments as in :func:`entries_of`."""
    return [entry for entry in entries_of(table, rules) if entry.is_below_cost]


def below_rate(table: LimitTable, rules: Mapping[str, TaskRules]) -> list[LimitEntry]:
    """Return the limits whose capacity is so small that busy workers leave tokens unused; arguments likewise."""
    return [entry for entry in entries_of(table, rules) if entry.limit.capacity < entry.usable_capacity]


def entries_of(table: LimitTable, rules: Mapping[str, TaskRules]) -> Iterator[LimitEntry]:
    """
    Return every limit that is in force.

    Args:
        table: The table of limits.
        rules: Rules of the tasks of this process, by name. Celery's own tasks are left out.
    """
    costs = _constant_costs(rules)
    named = table.levels.get("task", {})
    others = {
        task: cost for task, cost in costs.items() if task not in named and rules.get(task, NO_RULES).limit is None
    }
    if table.top is not None:
        yield LimitEntry("limits['all']", table.top, costs)
    for level, section in SECTIONS.items():
        for name, limit in table.levels.get(level, {}).items():
            if limit is None:
                continue
            passing = costs if level != "task" else others if name == "*" else _only(name, costs)
            yield LimitEntry(f"limits[{section!r}][{name!r}]", limit, passing)
    for name, one in rules.items():
        if one.limit is not None and name not in named:
            yield LimitEntry(f"{name}: rate", one.limit, _only(name, costs))


def _constant_costs(rules: Mapping[str, TaskRules]) -> dict[str, float]:
    """Return the constant costs by name of the task, highest first."""
    own = {name: one.cost for name, one in rules.items() if not is_built_in(name)}
    costs = {name: float(cost) for name, cost in own.items() if isinstance(cost, (int, float))}
    return dict(sorted(costs.items(), key=lambda item: -item[1])) if own else {_ANY_TASK: 1.0}


def _only(task: str, costs: Mapping[str, float]) -> dict[str, float]:
    return {task: costs[task]} if task in costs else {}
