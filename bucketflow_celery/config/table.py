"""The table of limits: parsed from the configuration, and resolved to the path of one task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from bucketflow.errors import ConfigError
from bucketflow.validation import check_number
from bucketflow_celery.config.built_in_tasks import is_built_in
from bucketflow_celery.config.levels import Level, LevelName, quoted
from bucketflow_celery.config.limit import Limit, LimitSpec, parse_limit

__all__ = ["DEFAULT_WEIGHT", "SECTIONS", "LimitTable", "pause_name", "pause_of"]

#: Section of the table that holds each level below ``all``.
SECTIONS = {"queue": "queues", "tenant": "tenants", "task": "tasks"}
#: Weight of a tenant for which the table has none.
DEFAULT_WEIGHT = 1.0
#: Largest weight. Beyond it the tags of other tenants would hardly move, and those tenants would starve.
_MAX_WEIGHT = 1000.0


@dataclass(frozen=True)
class LimitTable:
    """
    The limits of a fleet.

    Attributes:
        top: Limit of the level ``all``, if any.
        levels: Limits by level and by name. The name ``"*"`` is the default of its level; ``None`` lifts the default.
        weights: Shares of the tenants in dispatch, by name. The name ``"*"`` is the default.
        paused: Names of what is paused: see :func:`pause_name`.
        version: Version of the fleet's limits and pauses when the table was read; empty if nothing was set.
    """

    top: Limit | None = None
    levels: Mapping[str, Mapping[str, Limit | None]] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    paused: frozenset[str] = frozenset()
    version: str = ""

    @classmethod
    def parse(cls, raw: Mapping[str, Any], mistakes: list[ConfigError]) -> LimitTable:
        """Return the table that the user wrote. An invalid entry is left out, and its error is added to *mistakes*."""
        known = {"all", *SECTIONS.values(), "weights"}
        if not isinstance(raw, Mapping):
            mistakes.append(ConfigError("limits", raw, f"a mapping with the keys {', '.join(sorted(known))}"))
            return cls()
        mistakes += [
            ConfigError(f"limits[{key!r}]", value, f"one of the keys {', '.join(sorted(known))}")
            for key, value in raw.items()
            if key not in known
        ]
        top = _parse_all({"all": raw.get("all")}, "limits", mistakes)["all"]
        levels = {}
        for level, section in SECTIONS.items():
            entries = raw.get(section, {})
            if isinstance(entries, Mapping):
                levels[level] = _parse_all(entries, f"limits[{section!r}]", mistakes)
            else:
                mistakes.append(ConfigError(f"limits[{section!r}]", entries, "a mapping of names to limits"))
        return cls(top, levels, _parse_weights(raw.get("weights", {}), mistakes))

    def dump(self) -> dict[str, Any]:
        """Return the table in a form that JSON can carry and :meth:`parse` accepts."""
        raw: dict[str, Any] = {"all": _dump(self.top)}
        for level, section in SECTIONS.items():
            raw[section] = {name: _dump(limit) for name, limit in self.levels.get(level, {}).items()}
        raw["weights"] = dict(self.weights)
        return raw

    def weight(self, tenant: str) -> float:
        """Return the share of *tenant* relative to other tenants; 1 by default."""
        return self.weights.get(tenant, self.weights.get("*", DEFAULT_WEIGHT))

    def pause(self, queue: str, tenant: str | None, task: str) -> LevelName | None:
        """Return the first level, from the root, at which a task is paused; ``None`` if it is not paused."""
        if not self.paused:
            return None
        names: list[tuple[LevelName, str | None]] = [("all", ""), ("queue", queue), ("tenant", tenant), ("task", task)]
        return next(
            (level for level, name in names if name is not None and pause_name(level, name) in self.paused), None
        )

    def find(self, level: LevelName, name: str) -> Limit | None:
        """Return the limit of *name* at *level*, or the default of the level."""
        entries = self.levels.get(level, {})
        return entries[name] if name in entries else entries.get("*")

    def frees(self, task: str) -> bool:
        """Return whether *task* passes no level: it is a task of Celery's own, to which no entry gives a limit."""
        return is_built_in(task) and self.levels.get("task", {}).get(task) is None

    def path(self, queue: str, tenant: str | None, task: str, task_limit: Limit | None = None) -> tuple[Level, ...]:
        """
        Return the levels that a task passes: all, queue, tenant, task, without those that have no limit.

        Celery's own tasks pass none, unless the table has an entry with the name of the task.

        Args:
            queue: Queue that delivered the task.
            tenant: Tenant of the task; ``None`` omits the level ``tenant``.
            task: Name of the task type.
            task_limit: Limit of the decorator. An entry of the table with the name of the task type takes precedence.

        Returns:
            The levels, root first; length 0 to 4.
        """
        return _path(self, queue, tenant, task, task_limit)

    # Compared by identity, because the fields cannot be hashed and a table is a key in the cache of paths.
    __hash__ = object.__hash__
    __eq__ = object.__eq__


@lru_cache(maxsize=8192)
def _path(table: LimitTable, queue: str, tenant: str | None, task: str, task_limit: Limit | None) -> tuple[Level, ...]:
    if table.frees(task):
        return ()
    own = table.find("task", task)
    if task_limit is not None and task not in table.levels.get("task", {}):
        own = task_limit
    levels = [_level("all", "", "all", table.top)]
    parent = f"q:{quoted(queue)}"
    levels.append(_level("queue", "", parent, table.find("queue", queue)))
    if tenant is not None:
        levels.append(_level("tenant", f"{parent}/", f"t:{quoted(tenant)}", table.find("tenant", tenant)))
        parent = f"{parent}/t:{quoted(tenant)}"
    levels.append(_level("task", f"{parent}/", f"f:{quoted(task)}", own))
    return tuple(level for level in levels if level is not None)


def _level(name: LevelName, parent: str, own: str, limit: Limit | None) -> Level | None:
    if limit is None:
        return None
    return Level(name, own if limit.shared else parent + own, limit)


def _parse_all(specs: Mapping[Any, LimitSpec], entry: str, mistakes: list[ConfigError]) -> dict[str, Limit | None]:
    limits: dict[str, Limit | None] = {}
    for name, spec in specs.items():
        try:
            _check_name(entry, name)
            limits[name] = parse_limit(f"{entry}[{name!r}]", spec)
        except ConfigError as mistake:
            mistakes.append(mistake)
            limits[str(name)] = None
    return limits


def _parse_weights(raw: Any, mistakes: list[ConfigError]) -> dict[str, float]:
    if not isinstance(raw, Mapping):
        mistakes.append(ConfigError("limits['weights']", raw, "a mapping of tenants to numbers"))
        return {}
    weights = {}
    for name, weight in raw.items():
        try:
            _check_name("limits['weights']", name)
            entry, expected = f"limits['weights'][{name!r}]", "a number from 0.001 to 1000"
            weights[name] = check_number(entry, weight, expected, minimum=0.001)
            if weights[name] > _MAX_WEIGHT:
                raise ConfigError(entry, weight, expected)
        except ConfigError as mistake:
            mistakes.append(mistake)
    return weights


def _check_name(entry: str, name: object) -> None:
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{entry}: name", name, "a non-empty string")


def pause_name(level: LevelName, name: str = "") -> str:
    """Return the name of a pause at *level*: ``"queue:emails"``, or ``"all:"``."""
    return f"{level}:{name}"


def pause_of(queue: str | None, tenant: str | None, task: str | None) -> str:
    """
    Return the name of a pause of one queue, tenant or task type; of everything if none is given.

    Raises:
        ConfigError: More than one is given, or one that is no name.
    """
    levels: tuple[tuple[LevelName, str | None], ...] = (("queue", queue), ("tenant", tenant), ("task", task))
    given = [(level, name) for level, name in levels if name is not None]
    if len(given) > 1:
        raise ConfigError("queue, tenant, task", ", ".join(level for level, _ in given), "one of them, or none")
    for level, name in given:
        if not isinstance(name, str) or not name:
            raise ConfigError(level, name, "a non-empty string")
    return pause_name(*given[0]) if given else pause_name("all")


def _dump(limit: Limit | None) -> dict[str, Any] | None:
    if limit is None:
        return None
    return {"capacity": limit.capacity, "fill_rate": limit.fill_rate, "shared": limit.shared}
