"""Warnings of capacities that are too small: what they name, and when they are logged."""

from __future__ import annotations

import logging

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from hypothesis import given
from hypothesis import strategies as st
from processes import wait_until

from bucketflow_celery import Limit, Throttle
from bucketflow_celery.config.capacity_check import below_cost, below_rate
from bucketflow_celery.config.rules import NO_RULES, TaskRules
from bucketflow_celery.config.table import LimitTable
from bucketflow_celery.testing import MemoryStore

HALF = Limit(0.5, 1)
TASKS = {
    "f": NO_RULES,
    "cheap": TaskRules(cost=0.25),
    "big": TaskRules(cost=10),
    "varies": TaskRules(cost="pages"),
    "own": TaskRules(limit=Limit(2, 1), cost=3),
    "celery.chord_unlock": NO_RULES,
}
COSTS = [
    # limits, then each entry that is too small and the tasks that always fail under it
    ({}, {"own: rate": ["own"]}),
    ({"all": HALF}, {"limits['all']": ["big", "own", "f"], "own: rate": ["own"]}),
    ({"all": Limit(1, 1)}, {"limits['all']": ["big", "own"], "own: rate": ["own"]}),
    ({"all": Limit(10, 1)}, {"own: rate": ["own"]}),
    ({"queues": {"*": Limit(3, 1), "q": "20/s"}}, {"limits['queues']['*']": ["big"], "own: rate": ["own"]}),
    ({"tenants": {"a": HALF, "b": None}}, {"limits['tenants']['a']": ["big", "own", "f"], "own: rate": ["own"]}),
    ({"tasks": {"f": HALF, "cheap": HALF}}, {"limits['tasks']['f']": ["f"], "own: rate": ["own"]}),
    ({"tasks": {"f": None, "*": HALF}}, {"limits['tasks']['*']": ["big"], "own: rate": ["own"]}),
    ({"tasks": {"own": "2/s"}}, {"limits['tasks']['own']": ["own"]}),
    ({"tasks": {"own": None, "unknown": HALF}}, {}),
]


def table(limits):
    return LimitTable.parse(limits, [])


@pytest.mark.parametrize(("limits", "expected"), COSTS)
def test_a_capacity_below_a_constant_cost_is_found_with_its_tasks(limits, expected):
    assert {entry.name: list(entry.too_expensive) for entry in below_cost(table(limits), TASKS)} == expected


@pytest.mark.parametrize("tasks", [{}, {"celery.accumulate": NO_RULES}])
def test_a_process_without_tasks_knows_the_default_cost(tasks):
    [entry] = below_cost(table({"all": HALF, "queues": {"*": Limit(1, 1)}}), tasks)
    assert (entry.name, entry.too_expensive) == ("limits['all']", {"a task without a cost of its own": 1})


RATES = [
    # capacity, fill rate, whether the capacity is below 0.1 s of the fill rate
    (1, 8, False),
    (1, 10, False),
    (1, 10.1, True),
    (0.3, 3, False),
    (9, 100, True),
    (10, 100, False),
    (5, 1 / 3600, False),
]


@pytest.mark.parametrize(("capacity", "fill_rate", "is_found"), RATES)
@pytest.mark.parametrize("section", ["all", "queues", "tenants", "tasks"])
def test_a_capacity_below_a_tenth_of_a_second_is_found(capacity, fill_rate, is_found, section):
    limit = Limit(capacity, fill_rate)
    found = below_rate(table({section: limit if section == "all" else {"x": limit}}), {})
    assert [entry.usable_capacity for entry in found] == [fill_rate / 10] * is_found


def test_a_rate_of_a_decorator_is_found():
    rules = {"slow": TaskRules(limit=Limit(1, 50))}
    assert [entry.name for entry in below_rate(table({}), rules)] == ["slow: rate"]
    assert not below_rate(table({"tasks": {"slow": "50/s"}}), rules)


@given(st.floats(1e-3, 1e6))
def test_a_rate_as_text_and_the_capacity_that_a_warning_names_are_large_enough(rate):
    assert not below_rate(table({"all": f"{rate:.6f}/s"}), {})
    for entry in below_rate(table({"all": Limit(rate / 11, rate)}), {}):
        assert not below_rate(table({"all": Limit(entry.usable_capacity, rate)}), {})


@pytest.fixture
def warnings():
    """Yield the warnings of the throttle. A worker in this process removes pytest's handler, and sets another level."""
    found = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())
    logger = logging.getLogger("bucketflow_celery.throttle")
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    yield found
    logger.setLevel(logging.NOTSET)
    logger.removeHandler(handler)


def work():
    pass


def shop(store, limits):
    app = Celery("shop", set_as_current=False, broker="memory://")
    for name, cost in (("render", 3), ("scan", 2), ("print", 2), ("fold", 2), ("post", 2)):
        app.task(name=f"shop.{name}", shared=False, bucketflow=TaskRules(cost=cost))(work)
    for name in [name for name in app.tasks if not name.startswith(("shop.", "celery."))]:
        del app.tasks[name]  # a shared task that another test has left
    return Throttle(app, store=store, limits=limits)


def test_a_worker_names_limits_that_are_too_small_when_it_starts_and_when_it_takes_them_over(warnings):
    throttle = shop(store := MemoryStore(), {"queues": {"*": Limit(2, 100)}, "tenants": {"a": "5/s"}})
    with start_worker(throttle.app, perform_ping_check=False):
        assert warnings == [
            "limits['queues']['*'] has a capacity of 2, tasks that cost more fail: shop.render (3)",
            "limits['queues']['*'] has a capacity of 2, busy workers leave tokens unused below 10",
        ]
        warnings.clear()
        store.set_limits({"tenants": {"*": {"capacity": 2, "fill_rate": 5}}})
        throttle.app.tasks["shop.render"].delay()
        wait_until(lambda: throttle.stats()["failed"], timeout=10)
        store.pause("all:", paused=True)
        assert throttle.peek("celery", "shop.render", "a")
        assert throttle.limits.paused
    assert warnings == ["limits['tenants']['*'] has a capacity of 2, tasks that cost more fail: shop.render (3)"]


def test_set_limits_names_limits_that_are_too_small(warnings):
    throttle = shop(MemoryStore(), {"all": "1/s"})
    throttle.set_limits({"all": Limit(2, 100), "tasks": {"shop.render": "3/s"}})
    throttle.set_limits(None)
    assert warnings == [
        "limits['all'] has a capacity of 2, tasks that cost more fail: shop.render (3)",
        "limits['all'] has a capacity of 2, busy workers leave tokens unused below 10",
    ]


def test_many_small_limits_and_many_tasks_are_summed_up(warnings):
    throttle = shop(MemoryStore(), {})
    throttle.set_limits({"tenants": {f"t{number}": Limit(1, 1) for number in range(14)}})
    assert len(warnings) == 11
    assert warnings[0].endswith("tasks that cost more fail: shop.render (3), shop.scan (2), shop.print (2) and 2 more")
    assert warnings[-1] == "limits with too small a capacity that are not named here: 4"
