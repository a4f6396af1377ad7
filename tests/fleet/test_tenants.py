"""Tenant of a task: from its header, an argument or a callable; stamped by the publisher and kept on retries."""

from __future__ import annotations

import json

import pytest
from records import JITTER, excess

SLOW = {"rate": "5/s", "capacity": 1}


def publish(fleet, calls):
    """Run *calls* in a publisher that has the tasks; return the headers that it has sent."""
    fleet.publish(*calls)
    return [json.loads(message)["headers"] for message in fleet.server.client().lrange("celery", 0, -1)][::-1]


STAMPS = [
    ("sync.delay('acme', 1)", "acme"),
    ("sync.delay(order=1, account='acme')", "acme"),
    ("ship.delay({'account': 'acme'})", "acme"),
    ("work.delay('acme')", "acme"),
    ("work.delay()", None),
    ("heavy.delay(1)", None),
    ("work.apply_async(('acme',), headers={'tenant': 'umbrella'})", "umbrella"),
    ("app.send_task('workloads.sync', ('acme',))", "acme"),
    ("app.send_task('unknown', ('acme',))", None),
]


def test_the_tenant_is_stamped_when_a_task_is_published(fleet):
    fleet.configure(limits={"tenants": {"*": SLOW}}, bucketflow_tenant="tenant")

    messages = publish(fleet, [code for code, _ in STAMPS])

    stamped = [(code, headers.get("tenant")) for (code, _), headers in zip(STAMPS, messages, strict=True)]
    assert stamped == STAMPS


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("sync", ("acme",), {}),
        ("ship", ({"account": "acme"},), {}),
        ("work", ("acme",), {}),
        ("add", (1, 2), {"headers": {"tenant": "acme"}}),
    ],
    ids=["argument", "callable", "default", "header"],
)
def test_a_worker_determines_the_tenant_of_an_unstamped_task(fleet, name, arguments, options):
    fleet.configure(limits={"tenants": {"acme": SLOW}, "tasks": {"workloads.sync": None}}, bucketflow_tenant="tenant")
    fleet.worker()
    fleet.send(name, *arguments, times=6, **options)

    starts = fleet.records.wait("starts", 6)

    assert excess(starts, 1, 5) <= JITTER
    assert {refusal["level"] for refusal in fleet.records.of("refusals")} == {"tenant"}


def test_a_retry_keeps_the_tenant(fleet):
    fleet.configure(limits={"tenants": {"acme": SLOW}})
    # Not as a header of apply_async, which Celery itself keeps on a retry, but where the throttle stamps it.
    stamp = "signals.before_task_publish.connect(lambda headers, **_: headers.update(tenant='acme'), weak=False)"
    publish(fleet, [stamp, "shaky.delay()"])
    fleet.worker()

    starts = fleet.records.wait("starts", 3)

    assert [start["retries"] for start in starts] == [0, 1, 2]
    assert [start["tenant"] for start in starts] == ["acme"] * 3
    assert excess(starts, 1, 5) <= JITTER


def test_a_tenant_has_a_bucket_in_each_queue_unless_its_limit_is_shared(fleet):
    limits = {"tenants": {"acme": SLOW, "key": {**SLOW, "shared": True}}}
    fleet.configure(limits=limits, bucketflow_tenant="tenant")
    fleet.worker(concurrency=4, queues="one,two")
    for queue in ("one", "two"):
        fleet.send("work", "acme", times=6, queue=queue)
        fleet.send("work", "key", times=4, queue=queue)

    fleet.records.wait("starts", 20)

    own, shared = (fleet.records.starts(1, args=[name]) for name in ("acme", "key"))
    assert excess(shared, 1, 5) <= JITTER
    assert excess(own, 2, 10) <= JITTER
    assert excess(own, 1, 5) > 3
