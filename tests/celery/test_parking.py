"""Parked tasks wait in Redis and are handed to workers, on real workers."""

from __future__ import annotations

from records import JITTER, excess, utilisation


def test_tasks_over_their_queues_limit_are_parked_and_start_at_its_rate(fleet):
    fleet.configure(limits={"queues": {"celery": {"rate": "50/s", "capacity": 5}}}, bucketflow_on_limit="park")
    fleet.start(2, "prefork", concurrency=2)
    fleet.send("work", times=150)

    starts = fleet.records.wait("starts", 150)

    assert len({start["id"] for start in starts}) == 150
    assert excess(starts, 5, 50) <= JITTER
    assert utilisation(starts, 5, 50) >= 0.97
    assert set(fleet.records.deliveries().values()) == {1}
