"""The bound on what a worker holds for a tenant, on real workers."""

from __future__ import annotations

from processes import wait_until

LIMIT, WINDOW = 20, 8
SLOW = {"rate": "1/s", "capacity": 1}


def test_a_backlog_stays_with_the_broker_and_other_tenants_and_workers_go_on(fleet):
    fleet.configure(
        limits={"tenants": {"*": SLOW}},
        bucketflow_tenant="tenant",
        bucketflow_on_limit="hold",
        bucketflow_hold_limit=LIMIT,
    )
    fleet.worker("prefork")
    sent = {result.id for result in fleet.send("work", "acme", times=300)}
    fleet.send("work", "umbrella")

    fleet.records.starts(1, args=["umbrella"])  # behind 300 tasks that may not start
    fleet.worker("threads")
    wait_until(lambda: all(stats["throttle"]["held"] >= 5 for stats in fleet.inspect().stats().values()), timeout=20)

    with fleet.server.client() as broker:
        assert broker.llen("celery") >= 300 - 2 * (LIMIT + WINDOW) - fleet.records.count("starts")
        assert broker.hlen("unacked") <= 2 * (LIMIT + WINDOW)
    acme = fleet.records.starts(3, args=["acme"])
    assert {start["id"] for start in acme} <= sent
    assert len({start["id"] for start in acme}) == len(acme)
