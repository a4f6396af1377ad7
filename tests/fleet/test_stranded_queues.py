"""Parked tasks of a queue that was renamed, on real workers."""

from __future__ import annotations

from processes import wait_until

LIMITS = {"tenants": {"*": {"rate": "20/s", "capacity": 1}}}


def test_the_parked_tasks_of_a_queue_without_workers_are_reported_and_run_after_a_move(fleet):
    fleet.configure(limits=LIMITS, bucketflow_tenant="tenant", bucketflow_on_limit="park", bucketflow_lease=4)
    throttle = fleet.throttle()
    throttle.pause(tenant="acme")
    old = fleet.worker(queues="old")
    sent = {result.id for result in fleet.send("work", "acme", times=12, queue="old")}
    fleet.wait_parked(12, "old")
    assert throttle.backlog()["old"].drain > 0
    old.terminate()
    new = fleet.worker(queues="new")
    throttle.resume(tenant="acme")

    new.wait_log("queue old: parked tasks wait that no live worker serves: tasks=12", timeout=20)
    backlog = throttle.backlog()["old"]
    assert (backlog.count, backlog.drain, backlog.reason) == (12, None, "no live worker serves the queue")

    assert throttle.move("old", "new") == 12

    starts = fleet.records.wait("starts", 12)
    assert {start["id"] for start in starts} == sent
    wait_until(lambda: not throttle.backlog())
    assert fleet.records.count("starts") == 12
