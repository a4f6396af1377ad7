"""The rules of a task: tenant and cost of a call, and the header that carries the tenant."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from celery import Celery
from celery._state import _task_stack

from bucketflow import ConfigError
from bucketflow_celery import throttled_task
from bucketflow_celery.config.rules import NO_RULES, TaskRules, cost_of, rules_of, tenant_from, tenant_of
from bucketflow_celery.messages.stamp import stamp


def sync(account, order=7, *, size=2, **more):
    return account, order, size, more


def first(*args, **_kwargs):
    return args[0]


def fails(*_args, **_kwargs):
    raise KeyError("region")


TENANTS = [
    # rule, args, kwargs, tenant
    (None, ("acme",), {}, None),
    ("account", ("acme",), {}, "acme"),
    ("account", (), {"account": "acme"}, "acme"),
    ("account", (42,), {}, "42"),
    ("order", ("acme",), {}, "7"),
    ("order", ("acme", 9), {}, "9"),
    ("size", ("acme",), {}, "2"),
    ("region", ("acme",), {"region": "eu"}, "eu"),
    ("account", (None,), {}, None),
    ("account", ("",), {}, None),
    ("account", (0,), {}, "0"),
    (first, ("acme",), {}, "acme"),
    (lambda account, **_: None, ("acme",), {}, None),  # noqa: ARG005
]


@pytest.mark.parametrize(("rule", "args", "kwargs", "tenant"), TENANTS)
def test_the_tenant_of_a_call(rule, args, kwargs, tenant):
    assert tenant_from(rule, sync, args, kwargs) == tenant


@pytest.mark.parametrize("rule", ["account", "region", fails, first])
def test_a_rule_that_cannot_be_applied_is_an_error(rule):
    with pytest.raises(ConfigError, match=r"tenant is .*expected applicable to the arguments of the call"):
        tenant_from(rule, sync, (), {})


COSTS = [
    (1.0, 1),
    (0, 0),
    (2.5, 2.5),
    ("order", 7),
    ("size", 2),
    (lambda account, *_, **__: len(account), 4),
]


@pytest.mark.parametrize(("rule", "cost"), COSTS)
def test_the_cost_of_a_call(rule, cost):
    assert cost_of(rule, sync, ("acme",), {}) == cost


@pytest.mark.parametrize("value", ["many", None, -1, float("nan"), float("inf"), 10**400, True, [1]])
@pytest.mark.parametrize("kind", ["argument", "callable"])
def test_a_cost_must_be_a_number_of_0_or_more(kind, value):
    with pytest.raises(ConfigError, match=r"^cost is .*a number of tokens, 0 or more"):
        cost_of("order" if kind == "argument" else lambda *_: value, sync, ("acme", value), {})


@pytest.mark.parametrize("option", ["tenant", "cost"])
def test_the_error_of_an_unknown_argument_lists_the_arguments(option):
    def job(account, order):
        return account, order

    TaskRules(**{option: "order"}).check_names("shop.job", job)
    TaskRules(**{option: "anything"}).check_names("shop.job", sync)  # it takes **more
    with pytest.raises(ConfigError) as caught:
        TaskRules(**{option: "acount"}).check_names("shop.job", job)
    assert str(caught.value).startswith(f"shop.job: {option} is 'acount', expected the name of an argument ")
    assert "'account', 'order'" in str(caught.value)


# The header


@pytest.fixture(scope="module")
def app():
    return Celery("shop", set_as_current=False, broker="memory://")


@pytest.fixture(scope="module")
def task(app):
    @throttled_task(app=app, name="shop.sync", tenant="account")
    def sync_order(account, order=1):
        return account, order

    app.finalize()
    return sync_order


@pytest.fixture(scope="module")
def plain(app):
    @app.task(name="shop.plain")
    def count(order):
        return order

    app.finalize()
    return count


def test_the_header_takes_precedence_over_the_rule_and_the_task_over_the_throttle(task, plain):
    assert tenant_of(task, None, {"tenant": "stamped"}, ("acme",), {}) == "stamped"
    assert tenant_of(task, None, {"tenant": 42}, ("acme",), {}) == "42"
    assert tenant_of(task, None, {"tenant": ""}, ("acme",), {}) is None
    assert tenant_of(task, "order", {"tenant": None}, ("acme", 5), {}) == "acme"
    assert tenant_of(plain, "order", {}, (5,), {}) == "5"
    assert tenant_of(plain, None, {}, (5,), {}) is None


def test_an_argument_named_by_the_throttle_applies_to_tasks_that_have_it(plain):
    assert tenant_of(plain, "account", {}, (5,), {}) is None
    with pytest.raises(ConfigError):
        tenant_of(plain, fails, {}, (5,), {})


def test_a_task_without_the_decorator_has_no_rules(task, plain):
    assert rules_of(plain) is NO_RULES
    assert rules_of(None) is NO_RULES
    assert rules_of(task).tenant == "account"


def stamped(app, name, body, headers=None, default=None):
    headers = {} if headers is None else headers
    stamp(app, default, name, headers, body)
    return headers.get("tenant")


def test_the_publisher_stamps_the_tenant_if_a_rule_applies(app, task, plain):
    assert stamped(app, task.name, (("acme",), {}, {})) == "acme"
    assert stamped(app, task.name, ((), {"account": "acme"}, {})) == "acme"
    assert stamped(app, plain.name, ((5,), {}, {}), default="order") == "5"
    assert stamped(app, plain.name, ((5,), {}, {})) is None


def test_a_header_that_the_publisher_set_is_never_overwritten(app, task):
    assert stamped(app, task.name, (("acme",), {}, {}), {"tenant": "mine"}) == "mine"


def test_a_tenant_that_no_rule_yields_is_left_to_the_worker(app, task, plain):
    assert stamped(app, task.name, ((), {}, {})) is None
    assert stamped(app, plain.name, ((5,), {}, {}), default=fails) is None
    assert stamped(app, "another.app's", (("acme",), {}, {})) is None
    assert stamped(app, task.name, {"args": ["acme"], "kwargs": {}}) is None  # protocol 1


def test_a_task_that_retries_itself_keeps_its_tenant(app, task):
    _task_stack.push(task)
    task.push_request(id="1", tenant="acme", headers={}, called_directly=False)
    try:
        assert stamped(app, task.name, ((), {}, {}), {"id": "1"}) == "acme"
        assert stamped(app, task.name, ((), {}, {}), {"id": "2"}) is None
    finally:
        task.pop_request()
        _task_stack.pop()


# Inheritance


@contextmanager
def running(task, args=(), **request):
    """Run *task* as a worker does."""
    _task_stack.push(task)
    task.push_request(**{"id": "parent", "args": args, "kwargs": {}, "called_directly": False, **request})
    try:
        yield
    finally:
        task.pop_request()
        _task_stack.pop()


def child_of(app, name, body, headers=None, **options):
    headers = {"id": "child", **(headers or {})}
    stamp(app, None, name, headers, body, **options)
    return headers.get("tenant")


@pytest.mark.parametrize(
    ("parent", "args", "request_headers", "tenant"),
    [
        ("shop.sync", ("acme",), {"tenant": "stamped"}, "stamped"),
        ("shop.sync", ("acme",), {}, "acme"),  # published without a throttle
        ("shop.sync", (), {}, None),  # it has run without limits, or under other rules
        ("shop.plain", (5,), {}, None),
        ("shop.sync", ("acme",), {"tenant": ""}, None),
        ("celery.chord_unlock", ("group", {}), {"tenant": "acme"}, "acme"),  # it publishes the body of a chord
        ("celery.starmap", ("shop.sync", [["acme"], ["acme"]]), {}, "acme"),
    ],
)
def test_a_child_inherits_the_tenant_of_the_task_that_runs(app, task, plain, parent, args, request_headers, tenant):  # noqa: PLR0913, PLR0917
    with running(app.tasks[parent], args, **request_headers):
        body = ((5,), {}, {})
        assert child_of(app, plain.name, body, inherits=True) == tenant
        assert child_of(app, plain.name, body) is None
        assert child_of(app, "celery.chord_unlock", ((), {}, {}), inherits=True) == tenant
        assert child_of(app, "another.app's", body, inherits=True) is None
        assert child_of(app, task.name, (("own",), {}, {}), inherits=True) == "own"


def test_a_task_that_another_task_calls_as_a_function_does_not_hide_the_one_that_runs(app, task, plain):
    with running(task, ("acme",)), running(plain, called_directly=True):
        assert child_of(app, plain.name, ((5,), {}, {}), inherits=True) == "acme"


def test_a_replacement_has_a_tenant_of_its_own(app, task, plain):
    with running(task, ("acme",), tenant="acme"):
        replacement, retry = {"id": "parent", "replaced_task_nesting": 1}, {"id": "parent"}
        assert child_of(app, task.name, (("umbrella",), {}, {}), replacement) == "umbrella"
        assert child_of(app, plain.name, ((5,), {}, {}), replacement) is None
        assert child_of(app, plain.name, ((5,), {}, {}), replacement, inherits=True) == "acme"
        assert child_of(app, task.name, (("umbrella",), {}, {}), retry) == "acme"
    with running(task, ("acme",), tenant="acme", replaced_task_nesting=1):
        assert child_of(app, task.name, (("umbrella",), {}, {}), {**retry, "replaced_task_nesting": 1}) == "acme"


def test_a_task_of_another_app_is_asked_for_its_header_only(app, plain):
    other = Celery("other", set_as_current=False, broker="memory://")

    @other.task(name="shop.sync", shared=False, bucketflow=TaskRules(tenant="account"))
    def theirs(account):
        return account

    with running(theirs, ("acme",)):
        assert child_of(app, plain.name, ((5,), {}, {}), inherits=True) is None
    with running(theirs, ("acme",), tenant="umbrella"):
        assert child_of(app, plain.name, ((5,), {}, {}), inherits=True) == "umbrella"


@pytest.mark.parametrize("inherits", [False, True])
@pytest.mark.parametrize(("own", "tenant"), [(True, "acme"), (False, None)])
def test_the_option_of_the_child_takes_precedence_over_that_of_the_throttle(app, task, own, inherits, tenant):
    @app.task(name=f"shop.inherits.{own}", shared=False, bucketflow=TaskRules(tenant_inherits=own))
    def child(order):
        return order

    app.finalize()
    with running(task, ("acme",)):
        assert child_of(app, child.name, ((5,), {}, {}), inherits=inherits) == tenant
        assert child_of(app, "celery.map", ((child.name, [1, 2]), {}, {}), inherits=inherits) == tenant
