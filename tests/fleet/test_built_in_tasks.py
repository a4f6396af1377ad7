"""Celery's own tasks: chords on a polling backend, and chunks, which are calls of another task."""

from __future__ import annotations

import pytest
from records import JITTER, excess

from bucketflow_celery import ConfigError, CostExceedsCapacity

MODES = ["retry", "hold", "park"]


def starmap(fleet, *calls):
    kwargs = {"task": fleet.app.signature("workloads.sync"), "it": calls}
    return fleet.app.send_task("celery.starmap", kwargs=kwargs)


@pytest.mark.parametrize("on_limit", MODES)
def test_a_chord_on_a_polling_backend_ends_while_every_limit_is_spent(fleet, on_limit):
    fleet.configure(
        limits={"tasks": {"*": {"rate": "1/h", "capacity": 1}}},
        bucketflow_on_limit=on_limit,
        bucketflow_max_wait=1,
        bucketflow_tenant="order",
        result_backend=f"file://{fleet.directory}",
        result_chord_retry_interval=0.2,
    )
    fleet.worker()

    fleet.publish("from celery import chord", "chord([work.s(1, seconds=1.5)])(total.s())")

    assert fleet.records.starts(1, task="workloads.total")
    assert fleet.records.starts(2, task="celery.chord_unlock")


@pytest.mark.parametrize("on_limit", MODES)
def test_a_chunk_takes_the_tokens_of_its_calls_from_their_tenant(fleet, on_limit):
    limits = {"tenants": {"*": {"rate": "5/s", "capacity": 3}}, "tasks": {"workloads.sync": None}}
    fleet.configure(limits=limits, bucketflow_on_limit=on_limit)
    fleet.worker()
    too_large, mixed = starmap(fleet, *[("other", n) for n in range(9)]), starmap(fleet, ("a", 1), ("b", 2))
    results = [starmap(fleet, *[("acme", n) for n in range(3)]) for _ in range(4)]

    assert [[account for _, account, _ in result.get(timeout=10)] for result in results] == [["acme"] * 3] * 4

    assert excess(fleet.records.of("starts"), 3, 5, cost=3) <= JITTER
    with pytest.raises(CostExceedsCapacity, match=r"at most 3 call\(s\) in place of 9"):
        too_large.get(timeout=5)
    with pytest.raises(ConfigError, match=r"2 calls of workloads\.sync is .* expected one tenant"):
        mixed.get(timeout=5)
