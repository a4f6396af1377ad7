"""The table of limits: valid and invalid entries, error messages, and the path of buckets of a task."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bucketflow
from bucketflow import ConfigError, CostExceedsCapacity
from bucketflow_celery.config.levels import Level, check_cost
from bucketflow_celery.config.limit import Limit, parse_limit
from bucketflow_celery.config.table import LimitTable, pause_name

ONE = Limit(1, 1)
TEN = Limit(10, 10)
SHARED = Limit(10, 10, shared=True)


def table(**raw):
    mistakes = []
    read = LimitTable.parse(raw, mistakes)
    assert not mistakes
    return read


def keys(path):
    return [level.key for level in path]


# Limits

GOOD = [
    ("10/s", TEN),
    ("30/m", Limit(1, 0.5)),
    ("3600/h", ONE),
    ("86400/d", ONE),
    (" 2.5 / s ", Limit(2.5, 2.5)),
    (TEN, TEN),
    (SHARED, SHARED),
    (bucketflow.Limit(10, 10), TEN),
    (None, None),
    ({"rate": "10/s"}, TEN),
    ({"rate": "10/s", "shared": True}, SHARED),
    ({"rate": "10/s", "capacity": 50}, Limit(50, 10)),
    ({"capacity": 10, "fill_rate": 10}, TEN),
    ({"capacity": 10, "fill_rate": 10, "shared": True}, SHARED),
]


@pytest.mark.parametrize(("spec", "limit"), GOOD)
def test_a_valid_spec_is_parsed(spec, limit):
    assert parse_limit("here", spec) == limit


BAD = [
    # spec, start of the message
    ("10", "here: rate is '10'"),
    ("0/s", "here: rate is '0/s'"),
    ("-1/s", "here: rate is '-1/s'"),
    ("10/y", "here: rate is '10/y'"),
    ("", "here: rate is ''"),
    (10, "here is 10"),
    (True, "here is True"),
    ([1, 1], "here is [1, 1]"),
    ({}, "here is {}"),
    ({"rate": "1/s", "fill_rate": 1}, "here is {'rate': '1/s', 'fill_rate': 1}"),
    ({"capacity": 1}, "here is {'capacity': 1}"),
    ({"rate": "1/s", "burst": 2}, "here is {'rate': '1/s', 'burst': 2}"),
    ({"rate": 5}, "here: rate is 5"),
    ({"rate": "1/s", "capacity": 0}, "here: capacity is 0"),
    ({"rate": "1/s", "capacity": "many"}, "here: capacity is 'many'"),
    ({"rate": "1/s", "shared": 1}, "here: shared is 1"),
    ({"capacity": 1, "fill_rate": float("nan")}, "here: fill_rate is nan"),
]


@pytest.mark.parametrize(("spec", "message"), BAD)
def test_an_error_names_the_entry_and_its_value(spec, message):
    with pytest.raises(ConfigError, match="expected") as caught:
        parse_limit("here", spec)
    assert str(caught.value).startswith(message + ", expected ")


@pytest.mark.parametrize("shared", [0, None, "yes"])
def test_shared_is_true_or_false(shared):
    with pytest.raises(ConfigError, match="shared"):
        Limit(1, 1, shared)


# The table


def test_every_error_in_a_table_is_reported_and_the_rest_is_parsed():
    mistakes = []
    read = LimitTable.parse(
        {"all": "fast", "queue": {}, "queues": {"a": "1/s", "b": "x", "": "1/s", 3: "1/s"}, "tenants": ["1/s"]},
        mistakes,
    )
    assert [mistake.entry for mistake in mistakes] == [
        "limits['queue']",
        "limits['all']: rate",
        "limits['queues']['b']: rate",
        "limits['queues']: name",
        "limits['queues']: name",
        "limits['tenants']",
    ]
    assert read.find("queue", "a") == ONE


@pytest.mark.parametrize("raw", [None, [], "10/s", 3])
def test_a_table_is_a_mapping(raw):
    mistakes = []
    LimitTable.parse(raw, mistakes)
    assert [(mistake.entry, mistake.value) for mistake in mistakes] == [("limits", raw)]


def test_a_star_is_the_default_of_a_level_and_none_lifts_it():
    read = table(tenants={"*": "10/s", "acme": "1/s", "free": None})
    assert [read.find("tenant", name) for name in ("acme", "other", "free", "*")] == [ONE, TEN, None, TEN]
    assert read.find("queue", "acme") is None


def test_a_table_round_trips_through_json():
    read = table(
        all="1/m",
        queues={"*": {"rate": "10/s", "shared": True}, "q": None},
        tasks={"f": Limit(3, 0.1)},
        tenants={},
        weights={"acme": 3, "*": 0.5},
    )
    mistakes = []
    again = LimitTable.parse(json.loads(json.dumps(read.dump())), mistakes)
    assert not mistakes
    assert (again.top, again.levels, again.weights) == (read.top, read.levels, read.weights)


# Weights


@pytest.mark.parametrize(
    ("weights", "tenant", "weight"),
    [
        ({}, "acme", 1),
        ({"acme": 3}, "acme", 3),
        ({"acme": 3}, "other", 1),
        ({"*": 2, "acme": 3}, "other", 2),
        ({"*": 2, "acme": 3}, "acme", 3),
        ({"*": 2}, "", 2),
        ({"a": 0.001}, "a", 0.001),
    ],
)
def test_the_weight_of_a_tenant(weights, tenant, weight):
    assert table(weights=weights).weight(tenant) == weight


BAD_WEIGHTS = [
    # weights, entry that the error names
    ({"acme": 0}, "limits['weights']['acme']"),
    ({"acme": -1}, "limits['weights']['acme']"),
    ({"acme": "3"}, "limits['weights']['acme']"),
    ({"acme": True}, "limits['weights']['acme']"),
    ({"acme": None}, "limits['weights']['acme']"),
    ({"acme": float("nan")}, "limits['weights']['acme']"),
    ({"acme": float("inf")}, "limits['weights']['acme']"),
    ({"": 1}, "limits['weights']: name"),
    ({3: 1}, "limits['weights']: name"),
    ([1], "limits['weights']"),
    (3, "limits['weights']"),
]


@pytest.mark.parametrize(("weights", "entry"), BAD_WEIGHTS)
def test_an_error_in_a_weight_names_its_entry_and_the_rest_is_parsed(weights, entry):
    mistakes = []
    read = LimitTable.parse({"all": "1/s", "weights": weights}, mistakes)
    assert [mistake.entry for mistake in mistakes] == [entry]
    assert (read.top, read.weight("acme")) == (ONE, 1)


# Pauses

PAUSED = [
    # paused, level at which a task f of tenant a in queue q is paused
    ([], None),
    (["all:"], "all"),
    (["queue:q"], "queue"),
    (["queue:r"], None),
    (["tenant:a"], "tenant"),
    (["tenant:b", "tenant:"], None),
    (["task:f"], "task"),
    (["task:f", "tenant:a"], "tenant"),
    (["task:f", "all:", "queue:q"], "all"),
    (["all:q", "q", ""], None),
]


@pytest.mark.parametrize(("paused", "level"), PAUSED)
def test_the_level_at_which_a_task_is_paused_is_the_first_from_the_root(paused, level):
    assert LimitTable(paused=frozenset(paused)).pause("q", "a", "f") == level


def test_a_task_without_a_tenant_is_not_paused_by_a_tenants_pause():
    paused = LimitTable(paused=frozenset([pause_name("tenant", "a")]))
    assert paused.pause("q", None, "f") is None


@given(st.text(), st.text())
def test_no_name_can_form_the_name_of_another_pause(one, other):
    names = [
        pause_name("all"),
        *(pause_name(level, name) for level in ("queue", "tenant", "task") for name in {one, other}),
    ]
    assert len(set(names)) == len(names)


# The path

FULL = {"all": "100/s", "queues": {"*": "10/s"}, "tenants": {"*": "10/s"}, "tasks": {"*": "10/s"}}

PATHS = [
    # limits, tenant, keys
    (FULL, "a", ["all", "q:q", "q:q/t:a", "q:q/t:a/f:f"]),
    (FULL, None, ["all", "q:q", "q:q/f:f"]),
    ({**FULL, "queues": {}}, "a", ["all", "q:q/t:a", "q:q/t:a/f:f"]),
    ({**FULL, "queues": {"*": "1/s", "q": None}}, "a", ["all", "q:q/t:a", "q:q/t:a/f:f"]),
    ({**FULL, "tenants": {"b": "1/s"}}, "a", ["all", "q:q", "q:q/t:a/f:f"]),
    ({"all": "1/s"}, "a", ["all"]),
    ({}, "a", []),
    ({"tenants": {"*": SHARED}}, "a", ["t:a"]),
    ({"tenants": {"*": SHARED}, "tasks": {"f": "1/s"}}, "a", ["t:a", "q:q/t:a/f:f"]),
    ({"tasks": {"f": SHARED}}, "a", ["f:f"]),
    ({"queues": {"q": SHARED}}, None, ["q:q"]),
]


@pytest.mark.parametrize(("limits", "tenant", "expected"), PATHS)
def test_the_path_of_a_task(limits, tenant, expected):
    path = table(**limits).path("q", tenant, "f")
    assert keys(path) == expected
    order = ["all", "queue", "tenant", "task"]
    assert [level.name for level in path] == sorted((level.name for level in path), key=order.index)


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [({}, TEN), ({"*": "1/s"}, TEN), ({"f": "1/s"}, ONE), ({"f": None}, None), ({"g": "1/s"}, TEN)],
)
def test_an_entry_for_a_task_takes_precedence_over_its_decorator_and_the_decorator_over_the_default(tasks, expected):
    path = table(tasks=tasks).path("q", None, "f", TEN)
    assert [level.limit for level in path] == ([expected] if expected else [])


ODD = ["a/f:f", "a:b", "{x}", "a b", "ä", "%2F", "a*", "1/s", "t:a", "a\nb", "a@b.c"]


def test_no_name_can_form_the_key_of_another_bucket_or_a_hash_tag():
    read = table(**FULL)
    seen = {}
    for name in ["a", *ODD]:
        for path in (read.path(name, "a", "f"), read.path("q", name, "f"), read.path("q", "a", name)):
            assert not any(set(level.key) & set("{}") for level in path)
            seen.setdefault(path[-1].key, set()).add(path)
    assert all(len(paths) == 1 for paths in seen.values())
    assert len(seen) == 3 * (1 + len(ODD))


@given(st.text(min_size=1), st.text(min_size=1), st.text(min_size=1), st.text(min_size=1))
def test_two_tenants_never_share_a_bucket(queue, tenant, other, task):
    read = table(**FULL)
    mine, theirs = (read.path(queue, name, task) for name in (tenant, other))
    assert (keys(mine) == keys(theirs)) == (tenant == other)


def test_two_tables_share_no_cached_path():
    assert table(all="1/s").path("q", None, "f") != table(all="2/s").path("q", None, "f")


# Cost and level


def test_the_error_of_a_cost_above_a_capacity_names_the_bucket():
    path = table(all="100/s", tenants={"*": "10/s"}).path("q", "a", "f")
    check_cost(path, 10)
    with pytest.raises(CostExceedsCapacity) as caught:
        check_cost(path, 11)
    assert (caught.value.key, caught.value.cost, caught.value.capacity) == ("q:q/t:a", 11, 10)


@pytest.mark.parametrize(("name", "blocks"), [("all", True), ("queue", True), ("tenant", False), ("task", False)])
def test_a_refusal_by_all_or_a_queue_blocks_the_whole_queue(name, blocks):
    assert Level(name, "key", ONE).blocks_queue == blocks
