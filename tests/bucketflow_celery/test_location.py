"""Where the levels live if the user does not say: in the broker's Redis, else in the result backend's."""

from __future__ import annotations

import logging

import pytest
from celery import Celery

from bucketflow import ConfigError
from bucketflow.redis_client.url import parse_url
from bucketflow_celery import Throttle
from bucketflow_celery.config.settings import Settings
from bucketflow_celery.location import locate
from bucketflow_celery.testing import MemoryStore

AMQP, RPC = "amqp://guest@localhost//", "rpc://"


@pytest.fixture(autouse=True)
def _without_environment(monkeypatch):
    for name in ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_RESULT_BACKEND"):
        monkeypatch.delenv(name, raising=False)


def app_of(broker, backend=None, **conf):
    app = Celery("shop", set_as_current=False)
    app.conf.update(broker_url=broker, result_backend=backend, **conf)
    return app


def located(broker, backend=None, url=None, url_options=None, **conf):
    return locate(Settings(url=url, url_options=url_options), app_of(broker, backend, **conf).conf)


CHOICES = [  # broker, result backend, the entry that decides
    ("redis://a/1", None, "broker_url"),
    ("redis://a/1", "redis://b", "broker_url"),
    ("rediss://a/1?ssl_cert_reqs=CERT_NONE", RPC, "broker_url"),
    ("redis+socket:///run/redis.sock", RPC, "broker_url"),
    (["sentinel://a", "sentinel://b"], RPC, "broker_url"),
    (AMQP, "redis://b/2", "result_backend"),
    (AMQP, "rediss://b?ssl_cert_reqs=required", "result_backend"),
    (AMQP, "sentinel://b?master_name=m", "result_backend"),
    ("filesystem://", "redis+socket:///run/redis.sock?virtual_host=2", "result_backend"),
]


@pytest.mark.parametrize(("broker", "backend", "entry"), CHOICES, ids=str)
def test_the_levels_live_in_the_redis_of_the_broker_or_else_of_the_result_backend(broker, backend, entry):
    location = located(broker, backend, broker_transport_options={"master_name": "m"})
    assert location.entry == entry
    assert location.url == (
        ";".join(broker) if isinstance(broker, list) else broker if entry == "broker_url" else backend
    )
    parse_url(location.url, location.options, location.entry, location.options_entry)


@pytest.mark.parametrize(("broker", "backend", "_entry"), CHOICES, ids=str)
def test_a_url_that_the_user_gives_decides(broker, backend, _entry):
    location = located(broker, backend, url="redis://mine/3", broker_transport_options={"master_name": "m"})
    assert location == ("url", "redis://mine/3", {}, "url_options")


@pytest.mark.parametrize("backend", [None, RPC, "db+sqlite:///x.db", "cache+memory://", "redis"])
def test_without_a_redis_the_error_says_what_to_give(backend):
    with pytest.raises(ConfigError, match=r'^url is None, expected .*"redis://localhost/1"'):
        located(AMQP, backend)


@pytest.mark.parametrize("backend", [None, "cache+memory://", "redis://b"])
def test_with_a_broker_in_memory_the_levels_are_in_memory(backend):
    throttle = Throttle(app_of("memory://", backend), limits={"all": "1/s"})
    assert isinstance(throttle.store, MemoryStore)
    assert throttle.store is throttle.store


def test_options_beside_a_url_that_is_not_used_are_an_error():
    with pytest.raises(ConfigError, match=r"^url_options is "):
        located("memory://", url_options={"max_connections": 7})


def test_a_location_shows_no_secret():
    location = located("redis://:zqx@a", url_options={"password": "zqx"})
    assert "zqx" not in repr(location)
    assert "redis://**@a" in repr(location)


def test_the_environment_of_celery_is_followed(monkeypatch):
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://other/4")
    assert located(AMQP).url == "redis://other/4"


CELERY_OPTIONS = [  # broker, result backend, options of Celery, options of the connection
    (
        "sentinel://a",
        None,
        {
            "broker_transport_options": {
                "master_name": "m",
                "sentinel_kwargs": {"password": "x"},
                "visibility_timeout": 60,
            }
        },
        {"master_name": "m", "sentinel_kwargs": {"password": "x"}},
    ),
    ("redis://a", None, {"broker_transport_options": {"master_name": "m", "max_connections": 2}}, {}),
    (
        "redis://a",
        None,
        {"broker_transport_options": {"health_check_interval": 10, "socket_keepalive": True}},
        {"health_check_interval": 10.0, "socket_keepalive": True},
    ),
    ("rediss://a", None, {}, {"ssl": True, "ssl_cert_reqs": "none", "ssl_check_hostname": False}),
    ("rediss://a?ssl_cert_reqs=required", None, {}, {"ssl": True, "ssl_cert_reqs": "required"}),
    (
        "redis://a",
        None,
        {"broker_use_ssl": {"ssl_cert_reqs": None, "keyfile": "x"}},
        {"ssl": True, "ssl_cert_reqs": "none", "ssl_check_hostname": False},
    ),
    (
        "rediss://a",
        None,
        {"broker_use_ssl": {"ssl_ca_certs": "/ca", "ssl_cert_reqs": "required"}},
        {"ssl": True, "ssl_ca_certs": "/ca", "ssl_cert_reqs": "required"},
    ),
    ("redis://a", None, {"broker_use_ssl": True}, {}),
    ("redis+socket:///s", None, {"broker_use_ssl": {"ssl_cert_reqs": None}}, {}),
    (
        AMQP,
        "sentinel://:pw@a/1",
        {
            "result_backend_transport_options": {"master_name": "m"},
            "broker_transport_options": {"master_name": "other"},
        },
        {"master_name": "m", "password": "pw", "db": 1},
    ),
    (
        AMQP,
        "redis://a",
        {"redis_username": "me", "redis_password": "pw", "redis_backend_health_check_interval": 5},
        {"username": "me", "password": "pw", "health_check_interval": 5.0},
    ),
    (AMQP, "redis://:own@a", {"redis_password": "pw"}, {"password": "own"}),
    (
        AMQP,
        "rediss://a",
        {"redis_backend_use_ssl": {"ssl_cert_reqs": "CERT_REQUIRED"}},
        {"ssl": True, "ssl_cert_reqs": "required"},
    ),
]


@pytest.mark.parametrize(("broker", "backend", "conf", "options"), CELERY_OPTIONS, ids=str)
def test_the_connection_is_made_as_celery_makes_its_own(broker, backend, conf, options):
    location = located(broker, backend, **conf)
    assert parse_url(location.url, location.options).options == options


def test_options_beside_the_url_take_precedence():
    beside = {"master_name": "mine", "max_connections": 7}
    location = located("sentinel://a", url_options=beside, broker_transport_options={"master_name": "m"})
    assert location.options == beside


@pytest.mark.parametrize(
    ("broker", "backend", "said"),
    [
        ("redis://:secret@a/x", None, "broker_url is 'redis://**@a/x', expected a database number"),
        ("redis://a;redis://b", None, "broker_url is 'redis://a;redis://b', expected one server"),
        ("sentinel://:secret@a", None, "broker_url is 'sentinel://**@a', expected a master_name"),
        (AMQP, "redis://:secret@a/x", "result_backend is 'redis://**@a/x', expected a database number"),
    ],
)
def test_a_mistake_in_a_url_of_celery_names_its_entry(broker, backend, said):
    with pytest.raises(ConfigError) as caught:
        _ = Throttle(app_of(broker, backend)).store
    assert str(caught.value).startswith(said)
    assert str(caught.value).endswith("; or give the throttle a url of its own")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "url is not set, the buckets are kept where broker_url says: redis://**@a/1"),
        ({"url": "redis://b"}, ""),
        ({"store": MemoryStore()}, ""),
    ],
    ids=["default", "url", "store"],
)
def test_a_place_that_the_user_does_not_give_is_logged_without_its_password(caplog, arguments, said):
    throttle = Throttle(app_of("redis://me:secret@a/1"), **arguments)
    with caplog.at_level(logging.INFO, logger="bucketflow_celery.throttle"):
        if throttle.location is not None:
            throttle.location.announce()
    assert caplog.text.count("\n") == bool(said)
    assert said in caplog.text
    assert "secret" not in caplog.text
