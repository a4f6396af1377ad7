"""Parked tasks wait in Redis and are dispatched at the rate of their limits, in FIFO order and in fair shares."""

from __future__ import annotations

import time

import pytest
from fleet import Fleet
from processes import wait_until
from records import JITTER, MAX_SHARED_RATE, excess, utilisation

RATE, CAPACITY = 50, 5
LIMIT = {"rate": f"{RATE}/s", "capacity": CAPACITY}
SHARED_LIMIT = {"rate": f"{MAX_SHARED_RATE}/s", "capacity": CAPACITY}
HOUR = {"rate": "1/h", "capacity": 1}


@pytest.fixture
def parking(fleet):
    """Yield a fleet without workers that parks refused tasks."""
    fleet.configure(bucketflow_on_limit="park")
    return fleet


def spend(fleet, tenant="acme"):
    """Run a task of *tenant* that takes the only token of an hour."""
    fleet.send("work", "first", headers={"tenant": tenant})
    fleet.records.wait("starts", 1)


def acme(fleet, *args, name="work", **options):
    return fleet.send(name, *args, headers={"tenant": "acme"}, **options)


def ids(results):
    return [result.id for result in results]


def ran_once(fleet, results):
    """Assert that each task was delivered once and started once, and that the backlog is empty."""
    starts = fleet.records.of("starts")
    assert sorted(start["id"] for start in starts) == sorted(ids(results))
    assert set(fleet.records.deliveries().values()) == {1}
    assert fleet.parked() == 0


@pytest.mark.timing
@pytest.mark.parametrize(
    "limits",
    [{"all": LIMIT}, {"queues": {"celery": LIMIT}}, {"tenants": {"*": LIMIT}}, {"tasks": {"workloads.work": LIMIT}}],
    ids=["all", "queue", "tenant", "task"],
)
def test_tasks_over_a_limit_are_parked_and_start_at_its_rate(parking, limits):
    parking.configure(limits=limits)
    parking.start(2, "prefork")
    sent = acme(parking, times=80)

    starts = parking.records.wait("starts", 80)

    assert excess(starts, CAPACITY, RATE) <= JITTER
    assert utilisation(starts, CAPACITY, RATE) >= 0.95
    ran_once(parking, sent)


@pytest.mark.timing
def test_the_all_limit_applies_to_the_backlogs_of_several_queues_together(parking):
    parking.configure(limits={"all": LIMIT})
    parking.start(2, queues="first,second,third")
    sent = [
        result for name in ("first", "second", "third") for result in parking.send("work", name, queue=name, times=25)
    ]

    starts = parking.records.wait("starts", 75)

    assert excess(starts, CAPACITY, RATE) <= JITTER
    assert utilisation(starts, CAPACITY, RATE) >= 0.95
    ran_once(parking, sent)


def test_tasks_of_a_tenant_start_in_fifo_order_and_new_tasks_do_not_overtake_the_backlog(parking):
    parking.configure(limits={"tenants": {"*": {"rate": "20/s", "capacity": 2}}})
    parking.worker(concurrency=1)
    sent = acme(parking, times=15)
    wait_until(lambda: parking.parked() > 0)
    while parking.parked():  # there are tokens for each of these, if it did not queue behind the backlog
        sent += acme(parking)
        time.sleep(0.1)

    starts = parking.records.wait("starts", len(sent))

    assert [start["id"] for start in starts] == ids(sent)
    ran_once(parking, sent)


def test_lower_priority_numbers_start_first_with_the_redis_broker(parking):
    parking.configure(limits={"tenants": {"*": HOUR}})
    parking.worker(concurrency=1)
    spend(parking)
    sent = {
        priority: acme(parking, priority, priority=priority, times=2) for priority in (9, 3, 0, 6)
    }  # not 4 and 5, which the broker does not distinguish
    parking.wait_parked(8)

    parking.throttle().set_limits({"tenants": {"*": LIMIT}})
    starts = parking.records.wait("starts", 9)[1:]

    assert [start["id"] for start in starts] == [one for priority in (0, 3, 6, 9) for one in ids(sent[priority])]


@pytest.mark.timing
def test_a_noisy_tenant_does_not_starve_another(parking):
    parking.configure(limits={"queues": {"*": LIMIT}})
    parking.start(2, "prefork")
    noisy = acme(parking, times=120)
    wait_until(lambda: parking.parked() > 70)
    quiet = parking.send("work", "quiet", times=15, headers={"tenant": "quiet"})

    parking.records.starts(15, args=["quiet"])

    assert parking.parked() > 0
    starts = parking.records.wait("starts", 135)
    served = [start["args"] for start in starts]
    first = served.index(["quiet"])
    assert served[first : first + 35].count(["quiet"]) == 15  # about every other task
    assert utilisation(starts, CAPACITY, RATE) >= 0.95
    ran_once(parking, noisy + quiet)


def test_tenants_share_their_queue_by_weight(parking):
    weights = {"gold": 5, "silver": 3, "bronze": 1}
    parking.configure(limits={"queues": {"*": {"rate": "90/s", "capacity": 1}}, "weights": weights})
    parking.throttle().pause(queue="celery")
    parking.start(2)
    for tenant in weights:
        parking.send("work", tenant, times=60, headers={"tenant": tenant})
    parking.wait_parked(180)

    parking.throttle().resume(queue="celery")
    parking.records.starts(50, args=["gold"])

    served = [start["args"][0] for start in parking.records.of("starts")[:90]]
    assert [served.count(tenant) for tenant in weights] == pytest.approx([50, 30, 10], abs=3)


@pytest.mark.timing
def test_a_share_that_a_tenant_cannot_use_goes_to_the_other_tenants(parking):
    parking.configure(limits={"queues": {"*": LIMIT}, "tenants": {"acme": {"rate": "2/s", "capacity": 1}}})
    parking.start(2)
    slow = acme(parking, times=5)
    parking.send("work", "fast", times=100, headers={"tenant": "fast"})

    fast = parking.records.starts(100, args=["fast"])

    assert utilisation(fast, CAPACITY, RATE - 2) >= 0.95
    starts = parking.records.starts(5, args=[])
    assert excess(starts, 1, 2) <= 0.2
    assert {start["id"] for start in starts} == set(ids(slow))


def test_task_types_of_a_tenant_are_dispatched_alternately(parking):
    parking.configure(limits={"tenants": {"*": HOUR}})
    parking.worker(concurrency=1)
    spend(parking)
    acme(parking, times=10)
    parking.wait_parked(10)
    acme(parking, 1, 1, name="add", times=3)
    parking.wait_parked(13)

    parking.throttle().set_limits({"tenants": {"*": LIMIT}})

    names = [start["task"] for start in parking.records.wait("starts", 14)[1:]]
    assert [at for at, name in enumerate(names) if name == "workloads.add"][-1] <= 5


@pytest.mark.timing
def test_fair_shares_and_limits_depend_on_cost(parking):
    parking.configure(limits={"queues": {"*": {"rate": "60/s", "capacity": 3}}})
    parking.throttle().pause(queue="celery")
    parking.worker()
    for tenant, tokens in (("bulky", 3), ("light", 1)):
        parking.send("heavy", tokens, times=30, headers={"tenant": tenant})
    parking.wait_parked(60)

    parking.throttle().resume(queue="celery")
    starts = parking.records.wait("starts", 60)

    while_both_waited = [start["args"][0] for start in starts[:36]]
    assert while_both_waited.count(3) == pytest.approx(9, abs=2)
    last, first = starts[-1]["at"], starts[0]["at"]
    assert last - first == pytest.approx((120 - 3) / 60, rel=0.15)


def test_an_unlimited_task_starts_beside_a_backlog(parking):
    parking.configure(limits={"queues": {"exhausted": HOUR}, "tenants": {"acme": HOUR}})
    parking.worker(queues="celery,exhausted")
    spend(parking)
    acme(parking, "acme", times=10)
    parking.send("work", "exhausted", queue="exhausted", times=11)
    parking.wait_parked(10)
    parking.wait_parked(10, "exhausted")
    parking.send("work", "free", times=20)

    parking.records.starts(20, args=["free"], timeout=3)

    assert parking.parked() == 10
    assert parking.parked("exhausted") == 10


def test_a_task_without_a_free_slot_is_dispatched_to_another_worker(parking):
    parking.configure(limits={"queues": {"*": {"rate": "1000/s", "capacity": 100}}})
    busy = parking.worker(concurrency=1)
    parking.send("work", "long", 6)
    parking.records.wait("starts", 1)
    waiting = parking.send("work", "short", times=4)
    parking.wait_parked(4)  # although there are enough tokens
    parking.worker(concurrency=1)

    starts = parking.records.starts(4, args=["short"], timeout=3)

    assert {start["node"] for start in starts} == {"w1"}
    assert {start["id"] for start in starts} == set(ids(waiting))
    assert set(parking.records.deliveries().values()) == {1}
    busy.kill()


@pytest.mark.timing
def test_an_idle_worker_is_notified_of_tasks_that_a_busy_worker_parks(parking):
    parking.configure(limits={"queues": {"*": {"rate": "1000/s", "capacity": 100}}}, worker_prefetch_multiplier=20)
    parking.start(2, concurrency=1)
    parking.send("work", "long", 2, times=1)
    parking.records.wait("starts", 1)
    parking.send("work", "short", 0.01, times=30)

    starts = parking.records.starts(30, args=["short", 0.01], timeout=1.8)

    assert len({start["node"] for start in starts}) == 1
    assert set(parking.records.deliveries().values()) == {1}


@pytest.mark.timing
def test_changed_limits_apply_to_a_backlog_at_once(parking):
    parking.configure(limits={"queues": {"*": {"rate": "1/h", "capacity": 5}}})
    parking.start(2)
    sent = parking.send("work", times=65)
    parking.wait_parked(60)
    changed = time.time()

    parking.throttle().set_limits({"queues": {"*": LIMIT}})
    starts = parking.records.wait("starts", 20, timeout=3)
    assert starts[5]["at"] - changed < 0.5
    parking.throttle().set_limits({"queues": {"*": HOUR}})
    time.sleep(0.3)
    slowed = parking.records.count("starts")
    time.sleep(0.7)
    assert parking.records.count("starts") == slowed < 65

    parking.throttle().set_limits({"queues": {"*": {"rate": "500/s", "capacity": 100}}})
    starts = parking.records.wait("starts", 65, timeout=3)
    assert excess(starts[5:], 100, 500) <= JITTER
    ran_once(parking, sent)


@pytest.mark.timing
def test_no_task_of_a_paused_queue_starts_until_it_is_resumed(parking):
    parking.configure(limits={"queues": {"*": LIMIT}})
    parking.start(2)
    sent = parking.send("work", times=40)
    parking.records.wait("starts", 15)
    parking.throttle().pause(queue="celery")
    time.sleep(0.3)
    before = parking.records.count("starts")
    sent += parking.send("work", times=10)
    time.sleep(0.7)
    assert parking.records.count("starts") == before
    parking.wait_parked(50 - before)
    resumed = time.time()

    parking.throttle().resume(queue="celery")

    starts = parking.records.wait("starts", 50)
    assert starts[before]["at"] - resumed < 0.5
    assert excess(starts, CAPACITY, RATE) <= JITTER
    ran_once(parking, sent)


def test_messages_above_backlog_limit_stay_with_the_broker(parking):
    parking.configure(limits={"queues": {"*": HOUR}}, bucketflow_backlog_limit=10)
    parking.worker()
    sent = parking.send("work", times=61)
    parking.wait_parked(10)
    time.sleep(0.5)
    assert parking.parked() == 10
    with parking.server.client() as broker:
        assert broker.llen("celery") >= 30

    parking.throttle().set_limits({"queues": {"*": SHARED_LIMIT}})

    starts = parking.records.wait("starts", 61)
    assert excess(starts[1:], CAPACITY, MAX_SHARED_RATE) <= JITTER
    ran_once(parking, sent)


@pytest.mark.timing
def test_each_namespace_and_queue_has_its_own_backlog(parking, redis_server, tmp_path):
    other = Fleet(tmp_path / "other", redis_server)
    (tmp_path / "other").mkdir()
    other.configure(
        bucketflow_on_limit="park",
        bucketflow_namespace="other",
        broker_url=f"{redis_server.url.removesuffix('/0')}/5",
        limits={"queues": {"celery": {"rate": "10/s", "capacity": 1}}},
    )
    parking.configure(limits={"queues": {"celery": {"rate": "20/s", "capacity": 2}, "swift": LIMIT}})
    try:
        parking.worker(queues="celery,swift", wait=False)
        other.worker().wait_ready()
        sent = parking.send("work", "celery", times=20) + parking.send("work", "swift", times=50, queue="swift")
        sent += other.send("work", "other", times=10)

        starts = parking.records.wait("starts", 80)

        for name, rate, capacity in (("celery", 20, 2), ("swift", RATE, CAPACITY), ("other", 10, 1)):
            own = [start for start in starts if start["args"] == [name]]
            assert excess(own, capacity, rate) <= JITTER
            assert utilisation(own, capacity, rate) >= 0.9
        ran_once(parking, sent)
    finally:
        other.close()


def test_a_redelivered_message_is_parked_once(parking):
    parking.configure(limits={"queues": {"*": LIMIT}})
    parking.throttle().pause(queue="celery")
    sent = parking.send("work", times=3)
    with parking.server.client() as broker:
        for message in broker.lrange("celery", 0, -1):
            broker.rpush("celery", message)
    parking.worker()
    wait_until(lambda: parking.stats()["parked"] == 3 and set(parking.records.deliveries().values()) == {2})
    assert parking.parked() == 3

    parking.throttle().resume(queue="celery")

    parking.records.wait("starts", 3)
    time.sleep(0.3)
    assert sorted(start["id"] for start in parking.records.of("starts")) == sorted(ids(sent))


def test_a_task_that_is_published_twice_with_one_id_runs_twice(parking):
    parking.configure(limits={"queues": {"*": LIMIT}})
    parking.throttle().pause(queue="celery")
    parking.worker()
    parking.send("work", times=2, task_id="the same")
    parking.wait_parked(2)

    parking.throttle().resume(queue="celery")

    parking.records.starts(2, id="the same")


@pytest.mark.parametrize("on_limit", ["retry", "hold"])
def test_a_worker_that_does_not_park_runs_tasks_that_others_parked(parking, on_limit):
    parking.configure(limits={"queues": {"*": SHARED_LIMIT}})
    parking.throttle().pause(queue="celery")
    parks = parking.worker()
    sent = acme(parking, times=20)
    parking.wait_parked(20)
    parks.terminate()
    assert parks.wait_end() == 0
    parking.configure(bucketflow_on_limit=on_limit)
    parking.worker()

    parking.throttle().resume(queue="celery")

    assert excess(parking.records.wait("starts", 20), CAPACITY, MAX_SHARED_RATE) <= JITTER
    ran_once(parking, sent)


@pytest.mark.timing
def test_each_task_may_have_its_own_on_limit(fleet):
    fleet.module(
        "mixed",
        """
        from workloads import app
        from bucketflow_celery import throttled_task

        def nothing():
            pass

        for policy in ("park", "hold", "retry"):
            throttled_task(app=app, name=f"workloads.{policy}", rate="10/s", capacity=1, on_limit=policy)(nothing)
        """,
    )
    fleet.worker(app="mixed")
    sent = {policy: fleet.send(policy, times=8) for policy in ("park", "hold", "retry")}

    fleet.records.wait("starts", 24)

    deliveries = fleet.records.deliveries()
    for policy, results in sent.items():
        starts = fleet.records.starts(8, task=f"workloads.{policy}")
        assert sorted(start["id"] for start in starts) == sorted(ids(results))
        assert excess(starts, 1, 10) <= JITTER
        assert max(deliveries[one] for one in ids(results)) == (2 if policy == "retry" else 1)
    stats = fleet.stats()
    assert stats["parked"] == stats["dispatched"] == pytest.approx(7, abs=1)
