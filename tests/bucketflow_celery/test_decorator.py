"""``throttled_task``: every way to use it, and the options it rejects."""

from __future__ import annotations

import inspect

import pytest
from celery import Celery, Task

from bucketflow import ConfigError
from bucketflow_celery import Limit, throttled_task


@pytest.fixture
def app():
    made = Celery("shop", set_as_current=False, broker="memory://")
    yield made
    made.close()


def test_with_an_app_the_task_belongs_to_that_app(app):
    @throttled_task(app=app, rate="5/s", capacity=10, tenant="account", cost=2, max_wait=30, on_limit="hold")
    def sync_order(account, order):
        """Send the order."""
        return account, order

    rules = sync_order.bucketflow
    assert (rules.limit, rules.tenant, rules.cost) == (Limit(10, 5), "account", 2)
    assert (rules.max_wait, rules.on_limit) == (30, "hold")
    assert app.tasks[sync_order.name].bucketflow is rules
    assert sync_order("acme", 1) == ("acme", 1)
    assert (sync_order.__name__, sync_order.__doc__) == ("sync_order", "Send the order.")
    assert list(inspect.signature(sync_order.run).parameters) == ["account", "order"]


def test_without_arguments_the_task_is_a_shared_task(app):
    @throttled_task
    def bare_job(account):
        return account

    assert app.tasks[bare_job.name].bucketflow.limit is None
    assert bare_job("acme") == "acme"


def test_without_an_app_the_task_is_a_shared_task_with_its_rules(app):
    @throttled_task(rate="5/s", shared=True)
    def shared_job():
        return 1

    assert app.tasks[shared_job.name].bucketflow.limit == Limit(5, 5, shared=True)


def test_options_of_celery_are_passed_on(app):
    @throttled_task(app=app, name="shop.named", bind=True, autoretry_for=(OSError,), max_retries=7, acks_late=True)
    def job(self, order):
        return self.name, order

    assert (job.name, job.max_retries, job.acks_late) == ("shop.named", 7, True)
    assert job(5) == ("shop.named", 5)


def test_self_is_no_argument_of_a_bound_task(app):
    @throttled_task(app=app, bind=True, tenant="account")
    def job(self, account):
        return self, account

    assert job.bucketflow.tenant == "account"


def test_a_task_class_gets_the_rules(app):
    @throttled_task(rate="5/s", tenant="account")
    class Sync(Task):
        name = "shop.Sync"

        def run(self, account):
            return account

    task = app.register_task(Sync())
    assert task.bucketflow.limit == Limit(5, 5)
    assert app.tasks["shop.Sync"].bucketflow.tenant == "account"


def test_the_rate_may_be_a_limit(app):
    @throttled_task(app=app, rate=Limit(50, 5, shared=True))
    def job():
        return 1

    assert job.bucketflow.limit == Limit(50, 5, shared=True)


BAD = [
    ({"rate": "fast"}, "rate: rate is 'fast'"),
    ({"rate": 5}, "rate is 5"),
    ({"rate": "5/s", "capacity": 0}, "rate: capacity is 0"),
    ({"rate": "5/s", "shared": "yes"}, "rate: shared is 'yes'"),
    ({"capacity": 5}, "capacity is 5"),
    ({"rate": Limit(1, 1), "capacity": 5}, "capacity is 5"),
    ({"cost": -1}, "cost is -1"),
    ({"cost": None}, "cost is None"),
    ({"cost": True}, "cost is True"),
    ({"tenant": ""}, "tenant is ''"),
    ({"tenant": 3}, "tenant is 3"),
    ({"max_wait": 0}, "max_wait is 0"),
    ({"max_wait": "1"}, "max_wait is '1'"),
    ({"tenant_inherits": "yes"}, "tenant_inherits is 'yes'"),
    ({"on_limit": "wait"}, "on_limit is 'wait'"),
    ({"tenant": "acount"}, "job: tenant is 'acount'"),
    ({"cost": "sise"}, "job: cost is 'sise'"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_an_invalid_option_raises_when_the_module_is_imported(app, options, message):
    def job(account, size):
        return account, size

    with pytest.raises(ConfigError) as caught:
        throttled_task(app=app, **options)(job)
    assert str(caught.value).startswith(message + ", expected ")


NEAR_MISSES = [
    ("tenants", "tenant"),
    ("tennant", "tenant"),
    ("tenat", "tenant"),
    ("Tenant", "tenant"),
    ("tenant_inherit", "tenant_inherits"),
    ("costs", "cost"),
    ("csot", "cost"),
    ("rates", "rate"),
    ("capcity", "capacity"),
    ("capasitys", "capacity"),
    ("share", "shared"),
    ("maxwait", "max_wait"),
    ("max_waits", "max_wait"),
    ("max_wiat", "max_wait"),
    ("onlimit", "on_limit"),
    ("on_limits", "on_limit"),
    ("ap", "app"),
]


@pytest.mark.parametrize(("option", "meant"), NEAR_MISSES)
def test_a_misspelt_option_is_an_error_that_names_the_right_one(app, option, meant):
    with pytest.raises(ConfigError, match=rf"^{option} is 1, expected the option {meant}, or "):
        throttled_task(app=app, **{option: 1})
    with pytest.raises(ConfigError, match=rf"the option {meant}, or "):
        throttled_task(**{option: 1})


OPTIONS_OF_CELERY = [
    *(name for name in dir(Task) if not name.startswith("_") and name != "app"),
    *(name for name in inspect.signature(Celery._task_from_fun).parameters if name not in ("self", "fun", "options")),
    *("filter", "lazy", "autoretry_for", "dont_autoretry_for", "retry_kwargs", "retry_backoff", "retry_jitter"),
    *("retry_backoff_max", "region", "custom", "port", "code", "role", "path", "team"),
]


@pytest.mark.parametrize("option", sorted(set(OPTIONS_OF_CELERY)))
def test_options_of_celery_and_unknown_ones_are_no_near_misses(app, option):
    throttled_task(app=app, **{option: None if option == "base" else 1})


def test_an_attribute_of_the_base_class_is_no_near_miss(app):
    class Base(Task):
        tenants = ()

    @throttled_task(app=app, base=Base, tenants=("acme",))
    def job():
        return 1

    assert job.tenants == ("acme",)


def test_a_name_of_celerys_own_tasks_is_an_error(app):
    with pytest.raises(ConfigError, match=r"^name is 'celery\.report', expected a name outside of celery\.\*"):
        throttled_task(app=app, name="celery.report")


@pytest.mark.parametrize("rate", [None, Limit(5, 5)])
def test_shared_without_a_rate_string_is_a_mistake(app, rate):
    with pytest.raises(ConfigError, match="shared"):
        throttled_task(app=app, rate=rate, shared=True)
