"""When the last of what is parked may start, by the limits and weights in force."""

from __future__ import annotations

from math import inf

import pytest

from bucketflow_celery.config.limit import Limit
from bucketflow_celery.config.table import LimitTable
from bucketflow_celery.operations.backlog import backlog_report
from bucketflow_celery.scheduling.model import Lane
from bucketflow_celery.store.interfaces import BacklogView, LaneView

NOW = 100_000_000


def table(paused=(), **raw):
    mistakes = []
    read = LimitTable.parse(raw, mistakes)
    assert not mistakes
    return LimitTable(read.top, read.levels, read.weights, frozenset(paused))


def drains(table, lanes, costs=None, task_limits=None):
    """Return the queue's drain and each tenant's; *lanes*: tenant, task, count."""
    views = [LaneView(Lane(tenant, task), count, NOW) for tenant, task, count in lanes]
    counts = {}
    for tenant, _, count in lanes:
        counts[tenant] = counts.get(tenant, 0) + count
    seen = backlog_report("q", BacklogView(NOW, costs or counts, views), table, task_limits or {})
    assert seen.count == sum(counts.values())
    assert {name: tenant.count for name, tenant in seen.tenants.items()} == counts
    return seen.drain, {name: tenant.drain for name, tenant in seen.tenants.items()}


A100 = [("a", "f", 100)]
STORY = [
    # limits, (tenant, task, count), the queue's drain, each tenant's
    ({}, A100, 0, {"a": 0}),
    ({"queues": {"q": "10/s"}}, [], 0, {}),
    ({"queues": {"q": "10/s"}}, A100, 10, {"a": 10}),
    ({"queues": {"r": "10/s"}}, A100, 0, {"a": 0}),
    ({"all": "5/s", "queues": {"q": "10/s"}}, A100, 20, {"a": 20}),
    ({"tenants": {"*": "2/s"}}, A100, 50, {"a": 50}),
    ({"queues": {"q": "10/s"}, "tenants": {"*": "2/s"}}, A100, 50, {"a": 50}),
    ({"tasks": {"f": "1/s"}}, A100, 100, {"a": 100}),
    # two types of one tenant, each at its own rate
    ({"tasks": {"f": "1/s"}}, [("a", "f", 30), ("a", "g", 70)], 30, {"a": 30}),
    # who has little is done in its share, who has much when all is done
    ({"queues": {"q": "10/s"}}, [*A100, ("b", "f", 10)], 11, {"a": 11, "b": 2}),
    ({"queues": {"q": "10/s"}}, [*A100, ("b", "f", 100)], 20, {"a": 20, "b": 20}),
    ({"queues": {"q": "10/s"}, "weights": {"b": 4}}, [*A100, ("b", "f", 10)], 11, {"a": 11, "b": 1.25}),
    ({"queues": {"q": "10/s"}, "weights": {"*": 2, "b": 8}}, [*A100, ("b", "f", 10)], 11, {"a": 11, "b": 1.25}),
    # of whom nobody says a tenant no tenant's limit holds
    ({"tenants": {"*": "1/s"}}, [("", "f", 100)], 0, {"": 0}),
]


@pytest.mark.parametrize(("limits", "lanes", "drain", "by_tenant"), STORY)
def test_when_the_last_may_start(limits, lanes, drain, by_tenant):
    of_queue, of_tenants = drains(table(**limits), lanes)
    assert of_queue == pytest.approx(drain)
    assert of_tenants == pytest.approx(by_tenant)


def test_costs_count():
    assert drains(table(queues={"q": "10/s"}), A100, costs={"a": 300.0})[0] == pytest.approx(30)


def test_a_decorators_limit_counts():
    assert drains(table(), A100, task_limits={"f": Limit(1, 4), "g": Limit(1, 1)})[0] == pytest.approx(25)


@pytest.mark.parametrize("paused", ["all:", "queue:q", "tenant:a", "task:f"])
def test_what_is_paused_does_not_drain(paused):
    assert drains(table([paused], queues={"q": "10/s"}), A100) == (inf, {"a": inf})
    others = drains(table([paused], queues={"q": "10/s"}), [*A100, ("b", "g", 1)])[1]
    assert (others["b"] == inf) == (paused in ("all:", "queue:q"))


def test_the_oldest_is_told_by_queue_and_tenant_and_never_lies_ahead():
    lanes = [
        LaneView(Lane("a", "f"), 1, NOW - 3_000_000),
        LaneView(Lane("a", "g"), 1, NOW - 7_000_000),
        LaneView(Lane("b", "f"), 1, NOW + 5),
    ]
    seen = backlog_report("q", BacklogView(NOW, {"a": 2.0, "b": 1.0}, lanes), table(), {})
    assert (seen.oldest, seen.tenants["a"].oldest, seen.tenants["b"].oldest) == (7, 7, 0)
    assert list(seen.tenants) == ["a", "b"]
