"""The options of a throttle: valid and invalid values, and where they are read from."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args

import pytest
from celery import Celery, signals
from celery.app.task import Context

from bucketflow import ConfigError, StoreUnavailable
from bucketflow_celery import ConfigErrors, OnLimit, OnStoreError, Throttle
from bucketflow_celery.config.settings import PREFIX, Settings
from bucketflow_celery.scheduling.ticket import HEADER, Ticket
from bucketflow_celery.testing import MemoryStore
from bucketflow_celery.worker.revocation import RevocationHandler


def tenant_of_call(*_args):
    return "acme"


GOOD = {
    "url": ["redis://localhost/1", "unix:///run/redis.sock"],
    "url_options": [{}, {"master_name": "mymaster"}],
    "on_limit": ["retry", "hold", "park"],
    "on_store_error": ["hold", "admit", "refuse", "local"],
    "local_share": [1, 0.25, 1e-3],
    "max_wait": [1, 0.5],
    "max_hold": [1, 3600.0],
    "hold_limit": [1, 100_000],
    "max_countdown": [1, 900],
    "consumer_timeout": [60, 1800.0],
    "tenant": ["account", tenant_of_call],
    "tenant_inherits": [True, False],
    "namespace": ["shop", "shop:eu"],
    "timeout": [0.1, 5],
    "backlog_limit": [1, 10_000_000],
    "lease": [1, 30.0],
    "parked_state": [True, False],
}
SECONDS = [0, -1, "1", True, float("nan"), float("inf"), [1]]
BAD = {
    "url": ["", 3, b""],
    "url_options": ["", 3, True],
    "limits": ["10/s", [], 3],
    "on_limit": ["wait", "", 1, "Retry"],
    "on_store_error": ["retry", True],
    "local_share": [0, -0.5, 1.01, 2, "1", True, float("nan"), float("inf")],
    "max_wait": SECONDS,
    "max_hold": SECONDS,
    "hold_limit": [0, -1, 1.5, "1", True],
    "max_countdown": SECONDS,
    "consumer_timeout": SECONDS,
    "tenant": ["", 3, ["account"]],
    "tenant_inherits": [1, "yes"],
    "namespace": ["", 3, "{shop}", "a}"],
    "timeout": SECONDS,
    "backlog_limit": [0, -1, 1.5, "1", True],
    "lease": [0.9, *SECONDS],
    "parked_state": [1, "yes"],
}


def cases(table):
    return [(option, value) for option, values in table.items() for value in values]


def test_these_tables_cover_every_option():
    names = {field.name for field in fields(Settings)}
    assert set(BAD) == names == {*GOOD, "limits"}


@pytest.mark.parametrize(("option", "value"), cases(GOOD))
@pytest.mark.parametrize("place", ["given", "conf"])
def test_a_valid_value_is_read(place, option, value):
    given, conf = ({option: value}, {}) if place == "given" else ({}, {PREFIX + option: value})
    assert getattr(Settings.read(given, conf), option) == value


@pytest.mark.parametrize(("option", "value"), cases(BAD))
@pytest.mark.parametrize("place", ["given", "conf"])
def test_an_invalid_value_is_an_error_that_names_it(place, option, value):
    given, conf = ({option: value}, {}) if place == "given" else ({}, {PREFIX + option: value})
    with pytest.raises(ConfigErrors) as caught:
        Settings.read(given, conf)
    (mistake,) = caught.value.mistakes
    assert mistake.entry == option
    assert f"{option} is {value!r}, expected " in str(caught.value)


@pytest.mark.parametrize("option", ["url", "url_options"])
def test_what_may_hold_a_password_is_not_shown(option):
    with pytest.raises(ConfigErrors) as caught:
        Settings.read({option: [b"redis://:secret@host"]}, {})
    assert "list" in str(caught.value)
    settings = Settings.read({"url": "redis://:secret@host", "url_options": {"password": "secret"}}, {})
    assert "secret" not in str(caught.value) + repr(caught.value) + repr(settings)


def test_an_argument_takes_precedence_over_the_configuration():
    read = Settings.read({"max_wait": 1, "timeout": None}, {"bucketflow_max_wait": 2, "bucketflow_timeout": 3})
    assert (read.max_wait, read.timeout) == (1, 3)


def test_all_errors_are_reported_together():
    with pytest.raises(ConfigErrors) as caught:
        Settings.read(
            {"on_limit": "no", "timeout": 0},
            {"bucketflow_limits": {"queues": {"a": "x"}, "b": 1}, "bucketflow_url": ""},
        )
    entries = {mistake.entry for mistake in caught.value.mistakes}
    assert entries == {"on_limit", "timeout", "url", "limits['b']", "limits['queues']['a']: rate"}
    assert str(caught.value).count("\n") == 4
    assert isinstance(caught.value, ConfigError)


def test_the_defaults():
    read = Settings.read({}, {})
    assert (read.on_limit, read.on_store_error, read.max_wait) == ("retry", "hold", None)
    assert (read.max_hold, read.max_countdown, read.namespace, read.timeout) == (600, 900, "bucketflow", 1)
    assert read.limits.path("q", "t", "f") == ()


# Throttle


def app(**conf):
    made = Celery("shop", set_as_current=False, broker="memory://")
    made.conf.update(conf)
    return made


def test_a_throttle_reads_the_conf_of_its_app_when_it_is_needed():
    shop = app()
    throttle = Throttle(shop, store=MemoryStore())
    shop.conf.update(bucketflow_limits={"all": "7/s"}, bucketflow_on_limit="hold")
    assert throttle.limits.top.fill_rate == 7
    assert throttle.settings.on_limit == "hold"
    assert shop.bucketflow is throttle


def test_a_throttle_reads_djangos_namespace():
    class Settings:
        CELERY_BUCKETFLOW_LIMITS = {"all": "7/s"}  # noqa: RUF012 - as Django's settings look

    shop = app()
    shop.config_from_object(Settings, namespace="CELERY")
    assert Throttle(shop, store=MemoryStore()).limits.top.fill_rate == 7


@pytest.mark.parametrize(("option", "value"), cases(BAD))
def test_a_throttle_with_an_invalid_option_is_not_created(option, value):
    shop = app()
    with pytest.raises(ConfigErrors, match=option):
        Throttle(shop, **{option: value})
    assert not hasattr(shop, "bucketflow")


@pytest.mark.parametrize("places", [("url", "client"), ("url", "store"), ("client", "store")])
def test_only_one_store_may_be_given(places):
    all_places = {"url": "redis://localhost", "client": object(), "store": MemoryStore()}
    with pytest.raises(ConfigError, match="one place where the buckets live"):
        Throttle(app(), **{place: all_places[place] for place in places})


def test_an_app_has_one_throttle():
    shop = app()
    Throttle(shop, store=MemoryStore())
    with pytest.raises(ConfigError, match="no throttle yet"):
        Throttle(shop, store=MemoryStore())


@pytest.mark.parametrize("url", ["localhost", "http://localhost"])
def test_a_url_without_a_redis_scheme_is_an_error(url):
    with pytest.raises(ConfigError, match="url"):
        _ = Throttle(app(), url=url).store


def test_invalid_limits_are_not_set_for_the_fleet():
    store = MemoryStore()
    throttle = Throttle(app(), store=store, limits={"all": "1/s"})
    with pytest.raises(ConfigErrors, match=r"limits\['all'\]"):
        throttle.set_limits({"all": "fast"})
    assert store.limits() == ("", None, frozenset())
    throttle.set_limits({"all": "5/s"})
    assert store.limits().table["all"] == {"capacity": 5, "fill_rate": 5, "shared": False}
    throttle.set_limits(None)
    assert store.limits() == ("", None, frozenset())


def test_a_message_with_an_invalid_tenant_is_a_config_error():
    shop = app()
    throttle = Throttle(shop, store=MemoryStore(), limits={"tenants": {"*": "1/s"}})

    @shop.task(name="shop.job", shared=False)
    def job():
        return None

    with pytest.raises(ConfigError, match=r"shop\.job.*a tenant and a cost that can be determined"):
        throttle.active_limits.resolve(job, {"tenant": "\ud800"}, (), {}, "celery")  # JSON can carry it, UTF-8 cannot


@pytest.mark.parametrize(("is_available", "tasks"), [(True, 1), (False, 30)])
def test_a_reservation_is_cancelled_once_and_an_unavailable_store_delays_the_worker_once(is_available, tasks):
    class Counting(MemoryStore):
        calls = 0

        def cancel_reservation(self, request):
            del request
            self.calls += 1
            if not is_available:
                raise StoreUnavailable("the store", "no answer")

    shop, store = app(), Counting()
    throttle = Throttle(shop, store=store, limits={"tenants": {"*": "1/s"}})
    for _ in range(2):  # two workers of one process
        RevocationHandler(throttle).connect()

    @shop.task(name="shop.revoked", shared=False)
    def job():
        return None

    ticket = Ticket({"q:celery/t:a": 1}, waiting_since=1.0).write()
    delivery = {"routing_key": "celery"}
    for number in range(tasks):
        request = Context(
            {"id": number, "tenant": "a", HEADER: ticket, "delivery_info": delivery, "args": (), "kwargs": {}}
        )
        signals.task_revoked.send(sender=shop.tasks[job.name], request=request)
    assert store.calls == 1


@pytest.mark.parametrize("namespace", [None, "CELERY"])
def test_the_error_of_a_misspelt_option_lists_the_options(namespace):
    key = "bucketflow_limts" if namespace is None else "CELERY_BUCKETFLOW_LIMTS"
    app = Celery("misspelt", set_as_current=False)
    app.config_from_object({key: {"all": "1/s"}}, namespace=namespace)
    with pytest.raises(ConfigErrors) as raised:
        Settings.read({}, app.conf)
    (mistake,) = raised.value.mistakes
    assert mistake.entry.lower().endswith("bucketflow_limts")
    assert "bucketflow_limits" in mistake.expected


KEYS = [
    # namespace, key, the right one
    (None, "bucketflow_limts", "bucketflow_limits"),
    (None, "bucketflow_limit", "bucketflow_limits"),
    (None, "bucketflow_tenants", "bucketflow_tenant"),
    (None, "bucketflow_onlimit", "bucketflow_on_limit"),
    (None, "buketflow_limits", "bucketflow_limits"),
    (None, "bucket_flow_limits", "bucketflow_limits"),
    (None, "bucketflowlimits", "bucketflow_limits"),
    (None, "BUCKETFLOW_LIMITS", "bucketflow_limits"),
    ("CELERY", "CELERY_BUCKETFLOW_LIMTS", "CELERY_BUCKETFLOW_LIMITS"),
    ("CELERY", "CELERY_BUKETFLOW_LIMITS", "CELERY_BUCKETFLOW_LIMITS"),
    ("CELERY", "BUCKETFLOW_LIMITS", "CELERY_BUCKETFLOW_LIMITS"),
]


@pytest.mark.parametrize(("namespace", "key", "right"), KEYS)
def test_the_error_of_a_key_that_is_nearly_an_option_names_the_option(namespace, key, right):
    shop = Celery("misspelt", set_as_current=False)
    shop.config_from_object({key: {"all": "1/s"}}, namespace=namespace)
    with pytest.raises(ConfigErrors) as raised:
        Settings.read({}, shop.conf)
    (mistake,) = raised.value.mistakes
    assert (mistake.entry, mistake.expected) == (
        key,
        f"{right}, if the option {right.lower().removeprefix('celery_')} is meant",
    )


@pytest.mark.parametrize("key", ["bucketflow_urls", "bucketflow_ulr", "BUCKETFLOW_URL", "bucketflow_redis"])
@pytest.mark.parametrize("value", ["redis://:zqx@h/1", {"password": "zqx"}, ["redis://:zqx@h/1"]])
def test_the_value_of_an_unknown_key_is_not_shown_because_it_may_hold_a_password(key, value):
    with pytest.raises(ConfigErrors) as raised:
        Settings.read({}, {key: value})
    assert "zqx" not in f"{raised.value}{raised.value!r}{raised.value.args!r}"


def test_a_key_that_is_near_no_option_lists_the_options_as_they_are_spelt():
    shop = Celery("misspelt", set_as_current=False)
    shop.config_from_object({"CELERY_BUCKETFLOW_SPEED": 1}, namespace="CELERY")
    with pytest.raises(ConfigErrors, match=r"expected one of CELERY_BUCKETFLOW_BACKLOG_LIMIT, .*BUCKETFLOW_URL"):
        Settings.read({}, shop.conf)


@pytest.mark.parametrize("namespace", [None, "CELERY"])
def test_keys_of_others_are_left_alone(namespace):
    shop = Celery("others", set_as_current=False)
    keys = {"BUCKETFLOW_URL": "redis://localhost", "workflow_limits": 1, "S3_BUCKET": "b", "airflow_url": "x"}
    shop.config_from_object(keys, namespace=namespace)
    # The module of settings has the URL for its own use.
    assert Settings.read({"url": "redis://localhost"}, shop.conf).url == "redis://localhost"


@pytest.mark.parametrize(("option", "choices"), [("on_limit", OnLimit), ("on_store_error", OnStoreError)])
def test_the_words_of_an_option_are_those_of_its_type(option, choices):
    words = get_args(choices)
    assert words == tuple(GOOD[option])
    with pytest.raises(ConfigErrors, match=", ".join(map(repr, words))):
        Settings.read({option: "never"}, {})
