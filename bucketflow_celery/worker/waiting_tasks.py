"""Counts the tasks that wait in a worker, by the level that they wait for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bucketflow_celery.admission.controller import AdmissionController
from bucketflow_celery.scheduling.ticket import HEADER, Ticket
from bucketflow_celery.stats import OTHER, no_waiting_tasks
from bucketflow_celery.worker.deferred_requests import deferred_requests

__all__ = ["WaitingTasks"]


class WaitingTasks:
    """
    The tasks that a worker holds, and the deferred ones that wait in it for their ETA.

    Args:
        consumer: Celery's ``Consumer``, connected.
        admission: Admission on its connection.
    """

    def __init__(self, consumer: Any, admission: AdmissionController) -> None:
        self._consumer = consumer
        self._admission = admission

    def by_level(self) -> dict[str, int]:
        """Return their numbers by name of the level; see :attr:`bucketflow_celery.stats.Stats.waiting_by_level`."""
        counts = no_waiting_tasks()
        for level, task in self._admission.held():
            counts[_binding(task.reservations) if level is None else level.name] += 1
        for deferred in deferred_requests(self._consumer):
            counts[_binding(Ticket.read(deferred.request.request_dict[HEADER]).reservations)] += 1
        return counts


def _binding(reservations: Mapping[str, int]) -> str:
    """Return the name of the level with the latest of *reservations*."""
    if not reservations:
        return OTHER
    key = max(reservations, key=lambda key: reservations[key])
    return "task" if key.rpartition("/")[2].startswith("f:") else "tenant"
