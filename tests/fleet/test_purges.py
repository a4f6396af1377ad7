"""Purges on real workers: what they hold, keep until its ETA, or have returned to the broker does not run."""

from __future__ import annotations

import pytest
from processes import wait_until


def refused(fleet, on_limit="retry", times=20):
    """Send tasks of one tenant, and return once all but the first have been refused."""
    fleet.configure(
        limits={"tenants": {"*": {"rate": "2/s", "capacity": 1}}},
        bucketflow_tenant="tenant",
        bucketflow_on_limit=on_limit,
    )
    worker = fleet.worker()
    fleet.send("work", "acme", times=times)
    wait_until(lambda: len(fleet.records.of("refusals")) >= times - 1)
    return worker


def assert_only_later_tasks_run(fleet, started):
    """Check that of *started* tasks one more may have started meanwhile, and that tasks sent now start at once."""
    later = {result.id for result in fleet.send("work", "acme", times=2)}
    wait_until(lambda: later <= {start["id"] for start in fleet.records.of("starts")}, timeout=5)
    assert len(fleet.records.of("starts")) <= started + 1 + len(later)


@pytest.mark.parametrize("on_limit", ["retry", "hold"])
def test_a_purge_ends_the_tasks_that_wait_in_a_worker(fleet, on_limit):
    refused(fleet, on_limit)
    started = len(fleet.records.of("starts"))

    assert fleet.throttle().purge("celery", tenant="other") == 0
    assert fleet.throttle().purge("celery", tenant="acme") == 0

    assert_only_later_tasks_run(fleet, started)
    wait_until(lambda: fleet.stats()["purged"] >= 20 - started - 1)
    assert fleet.stats()["waiting"] == 0


def test_a_worker_that_starts_later_ends_the_copies_that_wait_in_the_broker(fleet):
    refused(fleet).process.stop()
    started = len(fleet.records.of("starts"))

    fleet.throttle().purge("celery")
    fleet.worker()

    assert_only_later_tasks_run(fleet, started - 1)
