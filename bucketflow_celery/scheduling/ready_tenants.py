"""The tenants whose next task may start, by task type and in the order of their tags."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["ReadyTenants", "by_score"]


class ReadyTenants:
    """
    An order of tenants for each task type: a worker finds those whose tasks it can run, whatever else is parked.

    Attributes:
        by_task: By task type, the tags of the tenants with a task of that type that may start, as far as their own
            limits go. No entry is empty.
    """

    def __init__(self) -> None:
        self.by_task: dict[str, dict[str, float]] = {}

    def __bool__(self) -> bool:
        return bool(self.by_task)

    def has(self, task: str, tenant: str) -> bool:
        """Return whether a task of the type *task* of *tenant* may start."""
        return tenant in self.by_task.get(task, ())

    def add(self, task: str, tenant: str, tag: float) -> None:
        """Record that a task of the type *task* may start, or that the tag of its tenant is another one."""
        self.by_task.setdefault(task, {})[tenant] = tag

    def remove(self, task: str, tenant: str) -> None:
        """Record that no task of the type *task* may start."""
        tags = self.by_task.get(task, {})
        tags.pop(tenant, None)
        if not tags:
            self.by_task.pop(task, None)

    def first(self, tasks: Iterable[str], count: int) -> list[str]:
        """Return the first *count* tenants with a task of one of the types *tasks* that may start, lowest tag first."""
        tags = {tenant: tag for task in tasks for tenant, tag in self.by_task.get(task, {}).items()}
        return [tenant for tenant, _ in by_score(tags)[:count]]


def by_score(scores: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return names and scores in the order of a Redis sorted set: by score, then by the bytes of the name."""
    return sorted(scores.items(), key=lambda item: (item[1], item[0].encode()))
