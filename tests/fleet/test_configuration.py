"""Every way to configure a worker. Mistakes are reported before the first task."""

from __future__ import annotations

import time

import pytest
from records import JITTER, excess
from servers import RedisCluster

LIMIT = {"rate": "10/s", "capacity": 2}


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (
            {
                "bucketflow_limits": {
                    "queue": {},
                    "queues": {"celery": "fast"},
                    "tenants": {"*": {"rate": "1/s", "capacity": -1}},
                    "tasks": {"work": 5},
                },
                "bucketflow_on_limit": "wait",
                "bucketflow_on_store_error": "panic",
                "bucketflow_max_wait": -1,
                "bucketflow_namespace": "{x}",
            },
            [
                "limits['queue']",
                "limits['queues']['celery']",
                "limits['tenants']['*']",
                "limits['tasks']['work']",
                "on_limit",
                "'wait'",
                "on_store_error",
                "'panic'",
                "max_wait",
                "-1",
                "namespace",
                "'{x}'",
            ],
        ),
        (
            {"bucketflow_url": None, "broker_url": "amqp://localhost:1//", "result_backend": None},
            ["url is None", "redis://"],
        ),
        ({"bucketflow_url": "localhost:6379"}, ["url", "localhost:6379"]),
        ({"bucketflow_url": "redis://:XXX/XXX@localhost/1"}, ["url is 'redis://**@localhost/1'", "%2F"]),
        ({"bucketflow_url": "redis://localhost/1?visibility_timeout=9"}, ["no option 'visibility_timeout'"]),
    ],
    ids=["many", "no url", "no scheme", "password", "option"],
)
def test_a_worker_with_an_invalid_configuration_exits_and_names_every_mistake(fleet, config, named):
    fleet.configure(**config)

    worker = fleet.worker(wait=False)

    assert worker.wait_end() != 0
    assert [entry for entry in named if entry not in worker.log] == []
    assert "Traceback" not in worker.log
    assert "XXX" not in worker.log
    assert "ready." not in worker.log


def test_a_worker_whose_database_the_server_does_not_have_exits_and_names_it(fleet):
    url = fleet.config["bucketflow_url"] + "9999"
    fleet.configure(bucketflow_url=url)

    worker = fleet.worker(wait=False)

    assert worker.wait_end() != 0
    assert f"url is '{url}', expected the number of a database that the server has" in worker.log
    assert "Traceback" not in worker.log


@pytest.mark.parametrize("entry", ["broker_url", "result_backend"])
def test_without_a_url_the_limits_live_in_the_redis_of_celery(fleet, request, entry):
    if entry == "result_backend":
        queue = fleet.directory.name
        fleet.configure(broker_url=request.getfixturevalue("rabbit_server").url, task_default_queue=queue)
    fleet.configure(limits={"all": LIMIT}, bucketflow_url=None)
    worker = fleet.worker()
    fleet.send("work", times=8)

    starts = fleet.records.wait("starts", 8)

    assert excess(starts, 2, 10) <= JITTER
    assert worker.log.count(f"url is not set, the buckets are kept where {entry} says: redis://") == 1
    with fleet.server.client(db=0 if entry == "broker_url" else 2) as client:
        assert client.exists("{bucketflow}:all")


@pytest.mark.parametrize(("on_limit", "connections"), [("retry", 1), ("park", 1), ("park", 2)])
def test_a_worker_with_too_few_connections_says_so_and_shares_them(fleet, on_limit, connections):
    url = f"{fleet.config['bucketflow_url']}?max_connections={connections}"
    fleet.configure(bucketflow_url=url, bucketflow_on_limit=on_limit, bucketflow_tenant="tenant")
    fleet.configure(limits={"tenants": {"*": LIMIT}})
    worker = fleet.worker("prefork")
    fleet.send("work", "acme", times=20)

    starts = fleet.records.wait("starts", 20)

    assert excess(starts, 2, 10) <= JITTER
    assert worker.log.count(f"max_connections is {connections}, a worker uses up to 6") == 1
    assert "unavailable" not in worker.log
    assert "not renewed" not in worker.log


def test_a_limit_of_an_unknown_task_is_a_warning(fleet):
    fleet.configure(limits={"tasks": {"workloads.wrok": "1/s"}})

    assert "workloads.wrok" in fleet.worker().log


def test_workers_with_different_configured_limits_say_so_once(fleet):
    fleet.configure(limits={"tenants": {"*": "1/s"}})
    first = fleet.worker()
    fleet.configure(limits={"tenants": {"*": "2/s"}})
    other = fleet.worker()
    said = "workers of namespace bucketflow are configured with different limits"

    for worker in (other, first):
        worker.wait_log(said, timeout=20)
    assert [worker.log.count(said) for worker in (first, other)] == [1, 1]


def test_a_worker_that_replaces_another_one_with_other_limits_says_nothing(fleet):
    fleet.configure(limits={"tenants": {"*": "1/s"}})
    fleet.worker().kill()
    fleet.configure(limits={"tenants": {"*": "2/s"}})
    workers = fleet.start(2)

    time.sleep(11)  # three announcements

    assert [worker.log.count("different limits") for worker in workers] == [0, 0]


def test_django_settings_with_the_celery_namespace(fleet):
    fleet.module(
        "settings",
        f"""
        SECRET_KEY = "x"
        CELERY_BROKER_URL = {fleet.config["broker_url"]!r}
        CELERY_RESULT_BACKEND = {fleet.config["result_backend"]!r}
        CELERY_BUCKETFLOW_URL = {fleet.config["bucketflow_url"]!r}
        CELERY_BUCKETFLOW_LIMITS = {{"tenants": {{"*": {LIMIT!r}}}}}
        CELERY_BUCKETFLOW_TENANT = "account"
        """,
    )
    fleet.module(
        "project",
        """
        import os
        os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
        import django
        django.setup()
        from celery import Celery
        from bucketflow_celery import Throttle
        app = Celery("project")
        app.config_from_object("django.conf:settings", namespace="CELERY")
        Throttle(app)
        import workloads  # connects the signal handlers that record

        @app.task(name="workloads.sell")
        def sell(account): ...
        """,
    )
    fleet.worker(app="project")
    fleet.send("sell", "acme", times=10)

    starts = fleet.records.wait("starts", 10)

    assert excess(starts, 2, 10) <= JITTER
    assert {refusal["level"] for refusal in fleet.records.of("refusals")} == {"tenant"}


def test_every_kind_of_task_is_limited(fleet):
    fleet.module(
        "kinds",
        """
        from celery import Task, shared_task
        from pydantic import BaseModel
        from workloads import app
        from bucketflow_celery import throttled_task

        class Order(BaseModel):
            account: str
            number: int

        @throttled_task(rate="10/s", capacity=2, name="workloads.shared")
        def shared(number): return number

        @throttled_task(name="workloads.bare")
        def ignored(number): return number

        @throttled_task
        def bare(number): return number

        @throttled_task(rate="10/s", capacity=2, tenant="account")
        class Classy(Task):
            name = "workloads.classy"
            def run(self, account, number): return number

        app.register_task(Classy())

        @throttled_task(app=app, rate="10/s", capacity=2, pydantic=True, name="workloads.typed",
                        tenant=lambda order: order["account"])
        def typed(order: Order) -> Order: return Order(account=order.account, number=order.number + 1)

        @app.task(name="workloads.plain")
        def plain(number): return number
        """,
    )
    fleet.configure(limits={"tasks": {"kinds.bare": LIMIT, "workloads.plain": LIMIT}})
    fleet.worker(app="kinds:app", concurrency=4)
    calls = {
        "workloads.shared": (7,),
        "kinds.bare": (7,),
        "workloads.classy": ("acme", 7),
        "workloads.typed": ({"account": "acme", "number": 7},),
        "workloads.plain": (7,),
    }
    results = {name: [fleet.app.send_task(name, args) for _ in range(6)] for name, args in calls.items()}

    fleet.records.wait("starts", 30)

    for name, sent in results.items():
        expected = {"account": "acme", "number": 8} if name == "workloads.typed" else 7
        assert [result.get(timeout=5) for result in sent] == [expected] * 6
        starts = fleet.records.starts(6, task=name)
        assert excess(starts, 2, 10) <= JITTER
        assert starts[-1]["at"] - starts[0]["at"] >= 0.3  # without a limit they take a tenth of that


def test_namespaces_share_nothing_and_keys_expire(fleet):
    fleet.configure(limits={"queues": {"*": {"rate": "1/m", "capacity": 5}}}, bucketflow_namespace="one")
    fleet.worker()
    fleet.send("work", times=4)
    fleet.records.wait("starts", 4)

    fleet.configure(bucketflow_namespace="two")
    [other] = fleet.throttle().peek("celery", "workloads.work")

    assert other.tokens == 5
    with fleet.server.client(db=1) as client:
        assert sorted(client.keys()) == [b"{one}:limits:tables", b"{one}:q:celery"]
        assert 0 < client.pttl("{one}:limits:tables") <= 6_000
        assert 0 < client.pttl("{one}:q:celery") <= 4 * 60_000 + 10_000


def test_the_limits_may_be_stored_on_a_redis_cluster(fleet, tmp_path):
    with RedisCluster.start(tmp_path / "cluster") as cluster:
        fleet.module(
            "clustered",
            f"""
            import os, json
            from celery import Celery
            from redis import RedisCluster
            from bucketflow_celery import Throttle

            app = Celery("clustered")
            app.config_from_object(json.loads(os.environ["WORKLOAD"]))
            Throttle(app, client=RedisCluster.from_url({cluster.url!r}),
                     limits={{"all": "100/s", "queues": {{"*": {LIMIT!r}}}, "tenants": {{"acme": "5/s"}}}})
            import workloads

            @app.task(name="workloads.clustered")
            def work(): ...
            """,
        )
        fleet.worker(app="clustered")
        fleet.send("clustered", times=8)
        fleet.send("clustered", times=4, headers={"tenant": "acme"})

        starts = fleet.records.wait("starts", 12)

        assert excess(starts, 2, 10) <= JITTER
        assert set(fleet.records.deliveries().values()) <= {1, 2}
        assert fleet.records.count("refusals") > 0
        with fleet.server.client(db=1) as client:
            assert client.keys() == []


@pytest.mark.parametrize(
    ("on_limit", "level"), [("park", "queues"), ("park", "tenants"), ("retry", "queues"), ("hold", "tenants")]
)
def test_workers_with_different_limits_start_no_more_than_the_larger_allows(fleet, on_limit, level):
    for limit in ("8/s", "10/s"):
        fleet.configure(limits={level: {"*": limit}}, bucketflow_on_limit=on_limit, bucketflow_tenant="tenant")
        fleet.worker()
    fleet.send("work", "acme", times=50)

    starts = fleet.records.wait("starts", 50)

    assert excess(starts, 10, 10) <= JITTER
