"""What counts as a number in the options of a throttle, in its limits, and in the cost of a call."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
from number_forms import NOT_FINITE, NOT_NUMBERS, NUMBERS, label

from bucketflow import ConfigError
from bucketflow_celery import ConfigErrors, Limit, throttled_task
from bucketflow_celery.config.rules import cost_of
from bucketflow_celery.config.settings import Settings
from bucketflow_celery.config.table import LimitTable

each_number = pytest.mark.parametrize("two", NUMBERS, ids=label)
each_other = pytest.mark.parametrize("value", [*NOT_NUMBERS, *NOT_FINITE], ids=label)

#: The options that take a number.
OPTIONS = [each.name for each in fields(Settings) if {"float", "int"} & set(each.type.replace("|", " ").split())]


def job(size):
    return size


def test_there_are_options_that_take_a_number():
    assert {"max_wait", "timeout", "lease", "backlog_limit"} <= set(OPTIONS)


@each_number
def test_the_cost_of_a_call_may_be_any_number(two):
    for rule in (two, "size", lambda size: size):
        rules = throttled_task(cost=rule)(job).bucketflow if rule is two else None
        cost = cost_of(rules.cost if rules else rule, job, (two,), {})
        assert (type(cost), cost) == (float, 2)


@each_number
def test_a_table_of_any_numbers_survives_json(two):
    raw = {"all": {"capacity": two, "fill_rate": two}, "tenants": {"a": Limit(two, two), "b": {"rate": "1/s"}}}
    raw["tenants"]["b"]["capacity"] = two
    mistakes = []
    table = LimitTable.parse({**raw, "weights": {"a": two}}, mistakes)
    assert mistakes == []
    assert table.top == table.levels["tenant"]["a"] == Limit(2, 2)
    assert LimitTable.parse(json.loads(json.dumps(table.dump())), mistakes).dump() == table.dump()


@each_number
@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_may_be_any_number(option, two):
    given = two / 4 if option == "local_share" else two  # which is at most 1
    read = getattr(Settings.read({option: given}, {}), option)
    assert read == given
    assert type(read) in (int, float)


@each_other
def test_nothing_else_is_the_cost_of_a_call_or_an_option(value):
    for rule in ("size", lambda size: size):
        with pytest.raises(ConfigError, match="cost"):
            cost_of(rule, job, (value,), {})
    if value is not None:
        for option in OPTIONS:
            with pytest.raises(ConfigErrors, match=option):
                Settings.read({option: value}, {})


@pytest.mark.parametrize("value", NOT_NUMBERS, ids=label)
def test_the_error_names_the_type(value):
    with pytest.raises(ConfigError, match=f", not .*{type(value).__name__}$"):
        cost_of("size", job, (value,), {})
