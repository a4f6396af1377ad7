"""Celery's own tasks: they are free, except that a map, a starmap and a chunk are calls of another task."""

from __future__ import annotations

import json

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st

from bucketflow import ConfigError, CostExceedsCapacity
from bucketflow_celery import Throttle
from bucketflow_celery.config.built_in_tasks import batch_of, is_built_in
from bucketflow_celery.config.levels import check_cost
from bucketflow_celery.config.rules import TaskRules
from bucketflow_celery.scheduling.model import TenantSummary
from bucketflow_celery.testing import MemoryStore

#: A table that limits every task at every level.
LIMITS = {"all": "100/s", "queues": {"*": "50/s"}, "tenants": {"*": "20/s"}, "tasks": {"*": "10/s"}}


def fails(order):
    raise KeyError(order)


def throttled(**options):
    app = Celery("shop", set_as_current=False, broker="memory://")
    throttle = Throttle(app, store=MemoryStore(), **{"limits": LIMITS, **options})

    rules = TaskRules(tenant="account", cost="size", max_wait=30, on_limit="hold")

    @app.task(name="batch.sync", shared=False, bucketflow=rules)
    def sync(account, size=1):
        return account, size

    @app.task(name="batch.plain", shared=False)
    def plain(order):
        return order

    app.finalize()
    return app, throttle


SHOP = throttled()
BUILT_IN = sorted(name for name, task in SHOP[0].tasks.items() if task.__module__ == "celery.app.builtins")


@pytest.fixture
def shop():
    return SHOP


def resolve(shop, name, args=(), kwargs=None, headers=None):
    app, throttle = shop
    return throttle.active_limits.resolve(app.tasks[name], headers or {}, args, kwargs or {}, "celery")


def levels(policy):
    return [level.key for level in policy.path]


# Free


def test_every_task_that_celery_registers_is_recognised():
    assert {"celery.chord_unlock", "celery.accumulate", "celery.backend_cleanup", "celery.chunks"} <= set(BUILT_IN)
    assert all(map(is_built_in, BUILT_IN))
    assert not any(map(is_built_in, ["shop.celery.sync", "celery", "celeryd.sync", "proj.celery.debug_task"]))


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("on_limit", ["retry", "hold", "park"])
@pytest.mark.parametrize("tenant", [None, "order", fails], ids=["no rule", "argument", "callable"])
def test_a_built_in_task_passes_no_level_has_no_tenant_and_waits_for_nothing(name, on_limit, tenant):
    policy = resolve(throttled(on_limit=on_limit, tenant=tenant, max_wait=1), name, ("anything",), {"interval": 1})
    assert (policy.path, policy.cost, policy.tenant, policy.max_wait) == ((), 0, None, None)
    assert not policy.parks


def test_a_built_in_task_passes_the_levels_of_the_table_if_the_table_names_it():
    limits = {**LIMITS, "tasks": {"celery.backend_cleanup": "1/h", "celery.accumulate": None}}
    shop = throttled(limits=limits, tenant=fails, max_wait=1)
    policy = resolve(shop, "celery.backend_cleanup")
    assert levels(policy) == ["all", "q:celery", "q:celery/f:celery.backend_cleanup"]
    assert (policy.cost, policy.tenant, policy.max_wait) == (1, None, None)
    assert levels(resolve(shop, "celery.backend_cleanup", headers={"tenant": "acme"}))[2:] == [
        "q:celery/t:acme",
        "q:celery/t:acme/f:celery.backend_cleanup",
    ]
    assert resolve(shop, "celery.accumulate").path == ()


def test_peek_shows_that_a_built_in_task_passes_no_level(shop):
    _, throttle = shop
    assert throttle.peek("celery", "celery.chord_unlock") == []
    assert len(throttle.peek("celery", "batch.plain", "acme")) == 4


@pytest.mark.parametrize("paused", [{}, {"queue": "celery"}, {"task": "celery.chord_unlock"}])
def test_a_pause_holds_built_in_tasks_too(paused):
    shop = throttled(on_limit="park")
    throttle = shop[1]
    throttle.pause(**paused)
    throttle.active_limits.refresh()
    assert resolve(shop, "celery.chord_unlock").paused == (next(iter(paused), "all"))


# Maps and chunks


def signature(name="batch.sync"):
    return {"task": name, "args": [], "kwargs": {}, "options": {}, "subtask_type": None, "immutable": False}


def forms(sync, items):
    """Return every form in which a message can carry the task and the items, as its arguments."""
    chunk = sync.chunks(items, 10)
    return {
        "as JSON carries it": ((), {"task": signature(), "it": items}),
        "positional": ((signature(), items), {}),
        "mixed": ((signature(),), {"it": items}),
        "name": ((), {"task": sync.name, "it": items}),
        "task, as pickle carries it": ((), {"task": sync, "it": items}),
        "signature": ((), {"task": sync.s(), "it": items}),
        "nested": ((), {"task": {"task": signature(), "args": []}, "it": items}),
        "chunk": ((), json.loads(json.dumps(dict(chunk["kwargs"])))),
        "generator": ((), dict(sync.starmap(item for item in items)["kwargs"])),
    }


@pytest.mark.parametrize("form", forms(SHOP[0].tasks["batch.sync"], []))
def test_a_starmap_has_the_tenant_the_rules_and_the_summed_cost_of_its_calls(shop, form):
    args, kwargs = forms(shop[0].tasks["batch.sync"], [("acme", 2), ("acme",), ["acme", 4]])[form]
    policy = resolve(shop, "celery.starmap", args, kwargs)
    assert (policy.tenant, policy.cost, policy.calls, policy.task) == ("acme", 7, 3, "batch.sync")
    assert (policy.max_wait, policy.on_limit) == (30, "hold")
    assert levels(policy) == ["all", "q:celery", "q:celery/t:acme", "q:celery/t:acme/f:batch.sync"]
    assert policy.path == resolve(shop, "batch.sync", ("acme", 7)).path


def test_a_map_passes_each_item_as_one_argument():
    shop = throttled(tenant=lambda order: order["account"])
    policy = resolve(shop, "celery.map", (), {"task": "batch.plain", "it": [{"account": "acme"}] * 4})
    assert (policy.tenant, policy.cost, policy.calls, policy.task) == ("acme", 4, 4, "batch.plain")


def test_a_map_of_maps_is_the_sum_of_all_calls(shop):
    inner = ["batch.sync", [["acme", 1], ["acme", 2]]]
    policy = resolve(shop, "celery.starmap", ("celery.starmap", [inner, inner]))
    assert (policy.tenant, policy.cost, policy.calls) == ("acme", 6, 4)
    with pytest.raises(ConfigError, match=r"starmap calls is 'batch\.plain, batch\.sync', expected one task"):
        resolve(shop, "celery.starmap", ("celery.starmap", [inner, ["batch.plain", [[1]]]]))


MIXED = [
    ([("acme",), ("umbrella",)], "'acme', 'umbrella'"),
    ([("acme",), (None,), ("acme",)], "'acme', none"),
]


@pytest.mark.parametrize(("items", "shown"), MIXED)
def test_calls_of_several_tenants_are_an_error_that_says_what_to_do(shop, items, shown):
    with pytest.raises(ConfigError) as caught:
        resolve(shop, "celery.starmap", ("batch.sync", items))
    assert f"of batch.sync is {shown!r}, expected one tenant for all calls of a chunk" in str(caught.value)
    assert resolve(shop, "celery.starmap", ("batch.sync", items), headers={"tenant": "x"}).tenant == "x"


def test_a_call_whose_tenant_cannot_be_determined_is_an_error(shop):
    with pytest.raises(ConfigError, match=r"tenant is .*account.*expected applicable to the arguments"):
        resolve(shop, "celery.starmap", ("batch.sync", [("acme",), ()]))


NOTHING_RUNS = [
    ("batch.sync", []),
    ("batch.gone", [("acme",)]),  # Celery: NotRegistered
    ("celery.accumulate", [("acme",)]),
    ("batch.sync", None),  # Celery: TypeError
    (None, [("acme",)]),
    ({"args": []}, [("acme",)]),
]


@pytest.mark.parametrize(("task", "items"), NOTHING_RUNS)
@pytest.mark.parametrize("name", ["celery.map", "celery.starmap"])
def test_a_batch_that_calls_no_task_of_the_user_is_free(shop, name, task, items):
    policy = resolve(shop, name, (task, items))
    assert (policy.path, policy.cost, policy.max_wait) == ((), 0, None)


def test_an_item_that_is_no_list_of_arguments_fails_the_starmap_before_its_first_call(shop):
    with pytest.raises(ConfigError, match=r"an item of celery\.starmap is 5, expected the positional arguments"):
        resolve(shop, "celery.starmap", ("batch.sync", [("acme",), 5]))


def test_an_iterator_is_left_to_the_task():
    items = iter([("acme",)])
    assert batch_of("celery.starmap", ("batch.sync", items), {}) is None
    assert next(items) == ("acme",)


@given(st.lists(st.tuples(st.just("acme"), st.floats(0, 100)), min_size=1), st.integers(1, 5))
def test_chunks_cost_together_what_their_calls_cost(calls, size):
    parts = SHOP[0].tasks["batch.sync"].chunks(calls, size).group().tasks
    policies = [resolve(SHOP, part["task"], (), dict(part["kwargs"])) for part in parts]
    assert sum(policy.cost for policy in policies) == pytest.approx(sum(size for _, size in calls))
    assert sum(policy.calls for policy in policies) == len(calls)


COSTS = [
    # calls, cost of each, advice
    (30, 1, "use chunks of at most 10 call(s) in place of 30, or give its limits a capacity of at least 30"),
    (4, 5, "use chunks of at most 2 call(s) in place of 4, or give its limits a capacity of at least 20"),
    (2, 11, "give its limits a capacity of at least 22"),
]


@pytest.mark.parametrize(("calls", "cost", "advice"), COSTS)
def test_a_chunk_above_a_capacity_says_what_to_do(shop, calls, cost, advice):
    policy = resolve(shop, "celery.starmap", ("batch.sync", [("acme", cost)] * calls))
    with pytest.raises(CostExceedsCapacity) as caught:
        check_cost(policy.path, policy.cost, policy.calls)
    assert caught.value.advice == advice
    assert str(caught.value).endswith(advice)
    check_cost(policy.path, 10, policy.calls)


def test_the_advice_survives_json():
    error = CostExceedsCapacity("q:q", 30, 10, "use less")
    assert type(error)(*json.loads(json.dumps(error.args))).advice == "use less"
    assert str(type(error)(*error.args)) == str(error)


def test_the_tenant_level_of_a_backlog_is_found_whatever_task_types_wait(shop):
    _, throttle = shop
    types = (("batch.sync", (0,)), ("celery.backend_cleanup", (0,)))
    spec = throttle.active_limits.tenant_spec("celery", TenantSummary("acme", types))
    assert spec.level.key == "q:celery/t:acme"
    assert [kind.level and kind.level.key for kind in spec.types] == ["q:celery/t:acme/f:batch.sync", None]
