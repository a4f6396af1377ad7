"""A paused tenant whose tasks do not park, on real workers."""

from __future__ import annotations

import time

import pytest
from records import JITTER, excess, utilisation

RATE, CAPACITY, TASKS = 20, 4, 120


@pytest.mark.timing
def test_the_tasks_of_a_paused_tenant_make_one_trip_and_start_within_a_second_of_the_resume(fleet):
    fleet.configure(limits={"tenants": {"*": {"rate": f"{RATE}/s", "capacity": CAPACITY}}}, bucketflow_tenant="tenant")
    throttle = fleet.throttle()
    throttle.pause(tenant="acme")
    fleet.start(2, "prefork")
    fleet.send("work", "acme", times=TASKS)
    fleet.send("work", "umbrella", times=1)
    fleet.records.wait("starts", 1)
    time.sleep(6)  # the deferral by 5 s at a time, which this replaces, would have begun a second trip
    assert fleet.stats()["deferred"] <= TASKS
    resumed = time.time()

    throttle.resume(tenant="acme")

    starts = fleet.records.starts(60, args=["acme"])
    assert starts[0]["at"] - resumed < 1
    assert excess(starts, CAPACITY, RATE) <= JITTER
    assert utilisation(starts, CAPACITY, RATE) >= 0.9
