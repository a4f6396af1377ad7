"""Backlog report: counts, ages and drain times by the limits and weights in force."""

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
    """Return the queue's drain time and each tenant's; *lanes* holds (tenant, task, count)."""
    views = [LaneView(Lane(tenant, task), count, NOW) for tenant, task, count in lanes]
    counts = {}
    for tenant, _, count in lanes:
        counts[tenant] = counts.get(tenant, 0) + count
    report = backlog_report("q", BacklogView(NOW, costs or counts, views), table, task_limits or {})
    assert report.count == sum(counts.values())
    assert {name: tenant.count for name, tenant in report.tenants.items()} == counts
    return report.drain, {name: tenant.drain for name, tenant in report.tenants.items()}


A100 = [("a", "f", 100)]
STORY = [
    # limits, lanes (tenant, task, count), the queue's drain time, each tenant's
    ({}, A100, 0, {"a": 0}),
    ({"queues": {"q": "10/s"}}, [], 0, {}),
    ({"queues": {"q": "10/s"}}, A100, 10, {"a": 10}),
    ({"queues": {"r": "10/s"}}, A100, 0, {"a": 0}),
    ({"all": "5/s", "queues": {"q": "10/s"}}, A100, 20, {"a": 20}),
    ({"tenants": {"*": "2/s"}}, A100, 50, {"a": 50}),
    ({"queues": {"q": "10/s"}, "tenants": {"*": "2/s"}}, A100, 50, {"a": 50}),
    ({"tasks": {"f": "1/s"}}, A100, 100, {"a": 100}),
    # two task types of one tenant, each at its own rate
    ({"tasks": {"f": "1/s"}}, [("a", "f", 30), ("a", "g", 70)], 30, {"a": 30}),
    # a small backlog drains at its fair share, the largest when the whole queue has drained
    ({"queues": {"q": "10/s"}}, [*A100, ("b", "f", 10)], 11, {"a": 11, "b": 2}),
    ({"queues": {"q": "10/s"}}, [*A100, ("b", "f", 100)], 20, {"a": 20, "b": 20}),
    ({"queues": {"q": "10/s"}, "weights": {"b": 4}}, [*A100, ("b", "f", 10)], 11, {"a": 11, "b": 1.25}),
    ({"queues": {"q": "10/s"}, "weights": {"*": 2, "b": 8}}, [*A100, ("b", "f", 10)], 11, {"a": 11, "b": 1.25}),
    # tasks without a tenant have no tenant limit
    ({"tenants": {"*": "1/s"}}, [("", "f", 100)], 0, {"": 0}),
]


@pytest.mark.parametrize(("limits", "lanes", "drain", "by_tenant"), STORY)
def test_drain_times_follow_limits_and_weights(limits, lanes, drain, by_tenant):
    of_queue, of_tenants = drains(table(**limits), lanes)
    assert of_queue == pytest.approx(drain)
    assert of_tenants == pytest.approx(by_tenant)


def test_drain_time_depends_on_costs():
    assert drains(table(queues={"q": "10/s"}), A100, costs={"a": 300.0})[0] == pytest.approx(30)


def test_drain_time_depends_on_the_decorators_limit():
    assert drains(table(), A100, task_limits={"f": Limit(1, 4), "g": Limit(1, 1)})[0] == pytest.approx(25)


@pytest.mark.parametrize("paused", ["all:", "queue:q", "tenant:a", "task:f"])
def test_paused_tasks_do_not_drain(paused):
    assert drains(table([paused], queues={"q": "10/s"}), A100) == (inf, {"a": inf})
    others = drains(table([paused], queues={"q": "10/s"}), [*A100, ("b", "g", 1)])[1]
    assert (others["b"] == inf) == (paused in ("all:", "queue:q"))


def test_the_oldest_is_reported_by_queue_and_tenant_and_is_never_negative():
    lanes = [
        LaneView(Lane("a", "f"), 1, NOW - 3_000_000),
        LaneView(Lane("a", "g"), 1, NOW - 7_000_000),
        LaneView(Lane("b", "f"), 1, NOW + 5),
    ]
    report = backlog_report("q", BacklogView(NOW, {"a": 2.0, "b": 1.0}, lanes), table(), {})
    assert (report.oldest, report.tenants["a"].oldest, report.tenants["b"].oldest) == (7, 7, 0)
    assert list(report.tenants) == ["a", "b"]
