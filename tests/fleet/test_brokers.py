"""The main promises on every broker and on the two main pools, through pytest-celery."""

from __future__ import annotations

from uuid import uuid4

import pytest
from celery import chain, chord
from nodes import LocalRabbitMQ, LocalRedis, LocalWorker
from pytest_celery import RabbitMQTestBroker, RedisTestBroker
from records import JITTER, excess, utilisation

QUORUM = {
    "task_default_queue_type": "quorum",
    "task_default_exchange_type": "topic",  # Celery's own countdowns need one on quorum queues
    "broker_transport_options": {"confirm_publish": True},
}

#: Umbrella has no tenant limit, so its tasks are held by the queue's limit. Tasks of other tenants are deferred.
LIMITS = {
    "queues": {"*": {"rate": "20/s", "capacity": 4}},
    "tenants": {"*": {"rate": "5/s", "capacity": 2}, "umbrella": None},
}


@pytest.fixture
def queue():
    """Return a unique queue name."""
    return f"celery.{uuid4().hex[:8]}"


@pytest.fixture
def default_redis_broker(redis_server):
    return LocalRedis(redis_server, "redis")


@pytest.fixture
def default_redis_backend(default_redis_broker):
    return default_redis_broker


@pytest.fixture
def default_rabbitmq_broker(rabbit_server):
    return LocalRabbitMQ(rabbit_server, "rabbit")


@pytest.fixture(params=["redis", "classic", "quorum"])
def celery_broker(request, fleet, queue):
    """Override: Redis and both queue types of RabbitMQ, which Celery treats differently."""
    fleet.configure(task_default_queue=queue, **(QUORUM if request.param == "quorum" else {}))
    if request.param == "redis":
        return RedisTestBroker(request.getfixturevalue("default_redis_broker"))
    return RabbitMQTestBroker(request.getfixturevalue("default_rabbitmq_broker"))


@pytest.fixture
def celery_backend(celery_redis_backend):
    return celery_redis_backend


@pytest.fixture
def celery_setup_config(celery_setup_cls, celery_worker_cluster_config, fleet):
    fleet.configure(limits=LIMITS, **celery_setup_cls.config(celery_worker_cluster_config))
    return fleet.config


@pytest.fixture(params=["prefork", "threads"])
def pool(request):
    return request.param


@pytest.fixture
def celery_worker(pool, celery_setup_worker):
    """Override: one worker for each pool."""
    del pool
    return celery_setup_worker


@pytest.fixture
def default_worker_container_cls(pool, queue):
    return type("Worker", (LocalWorker,), {"pool": pool, "queue": queue})


@pytest.fixture
def default_worker_initial_content():
    return {"app.py": b"from workloads import app"}


@pytest.fixture
def default_worker_env(default_worker_env, celery_setup_config, fleet):
    del celery_setup_config  # requested because it completes the fleet's configuration
    return {**default_worker_env, **fleet.environment("worker")}


@pytest.fixture
def default_worker_container(
    default_worker_container_cls, default_worker_command, default_worker_env, default_worker_initial_content, tmp_path
):
    node = default_worker_container_cls.launch(
        default_worker_command, default_worker_env, default_worker_initial_content, tmp_path
    )
    yield node
    node.teardown()


def send(app, name, *args, tenant, times=1):
    signature = app.signature(f"workloads.{name}", args).set(headers={"tenant": tenant})
    return [signature.apply_async().id for _ in range(times)]


@pytest.mark.timing
def test_limits_are_never_exceeded_and_fully_used_and_tasks_are_deferred_at_most_once(celery_setup, fleet):
    assert celery_setup.worker.ready()
    acme = send(celery_setup.app, "work", tenant="acme", times=10)
    others = send(celery_setup.app, "work", tenant="umbrella", times=30)

    starts = fleet.records.wait("starts", 40)

    assert excess(starts, 4, 20) <= JITTER
    assert excess([start for start in starts if start["tenant"] == "acme"], 2, 5) <= JITTER
    last = max(start["at"] for start in starts if start["tenant"] == "umbrella")
    assert utilisation([start for start in starts if start["at"] <= last], 4, 20) >= 0.9
    assert sorted(start["id"] for start in starts) == sorted(acme + others)
    deliveries = fleet.records.deliveries()
    assert max(deliveries[task] for task in acme) == 2
    assert {deliveries[task] for task in others} == {1}


def test_canvas_and_retries_work_with_deferred_tasks(celery_setup, fleet):
    assert celery_setup.worker.ready()
    app = celery_setup.app

    def add(*numbers, tenant):
        return app.signature("workloads.add", numbers).set(headers={"tenant": tenant})

    total = app.signature("workloads.total").set(headers={"tenant": "total"})
    header = [chain(add(number, number, tenant="acme"), add(1, tenant="acme")) for number in range(3)]
    summed = chord(header, total).apply_async()
    send(app, "work", tenant="third", times=4)
    retried = app.signature("workloads.stubborn").set(headers={"tenant": "third"}).apply_async()

    assert summed.get(timeout=20) == 9
    assert retried.get(timeout=20) == 2

    starts = fleet.records.of("starts")
    assert len(starts) == 3 + 3 + 1 + 4 + 3
    assert [start["retries"] for start in starts if start["id"] == retried.id] == [0, 1, 2]
    assert fleet.records.count("refusals") >= 4
