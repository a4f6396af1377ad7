"""Priorities on real workers: a task that is refused goes before less urgent ones that wait in the same worker."""

from __future__ import annotations

import pytest
from processes import wait_until


def places_behind(fleet, urgent, usual):
    """Return how many usual tasks start between the sending of an urgent one and its start, behind a backlog of 12."""
    fleet.configure(limits={"tenants": {"*": {"rate": "2/s", "capacity": 1}}}, bucketflow_tenant="tenant")
    fleet.worker()
    fleet.send("work", "acme", times=12, priority=usual)
    wait_until(lambda: len(fleet.records.of("refusals")) >= 11)
    before = len(fleet.records.of("starts"))
    [sent] = fleet.send("work", "acme", priority=urgent)
    wait_until(lambda: fleet.records.starts(1, id=sent.id))
    return [start["id"] for start in fleet.records.of("starts")].index(sent.id) - before


@pytest.mark.parametrize("on_limit", ["retry", "hold"])
def test_an_urgent_task_overtakes_a_backlog_with_the_redis_broker(fleet, on_limit):
    fleet.configure(bucketflow_on_limit=on_limit)

    assert places_behind(fleet, urgent=0, usual=9) <= 2


def test_an_urgent_task_overtakes_a_backlog_with_rabbitmq(fleet, rabbit_server):
    queue = "urgent-and-usual"
    fleet.configure(broker_url=rabbit_server.url, task_default_queue=queue, task_queue_max_priority=10)

    assert places_behind(fleet, urgent=9, usual=0) <= 2
