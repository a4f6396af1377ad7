"""Every operation of a backlog in a store, once or more."""

from __future__ import annotations

from backlog_twins import message_of, parcel

from bucketflow_celery.config.levels import Level
from bucketflow_celery.config.limit import Limit
from bucketflow_celery.parking.worker_lease import reclaim
from bucketflow_celery.scheduling.model import DispatchRequest, Lane, Refund, Settlement, TaskSpec, TenantSpec
from bucketflow_celery.store.interfaces import LeaseLost

__all__ = ["CANDIDATE", "FAST", "request_of", "run_every_operation"]

FAST = Level("queue", "q:q", Limit(1000, 1000))
CANDIDATE = TenantSpec("acme", (TaskSpec("mail", (0,)),), 1.0, Level("tenant", "q:q/t:acme", Limit(1000, 1000)))


def request_of(worker="w", free=1, common=(FAST,), candidates=(CANDIDATE,)):
    """Return a request for tasks of *candidates*."""
    return DispatchRequest(worker, free, common, candidates, ("mail", "report"))


def run_every_operation(store):
    """Run every operation of the backlog once or more, and check the replies."""
    backlogs = store.backlogs
    store.set_limits({"all": "1/s"})
    store.pause("queue:x", paused=True)
    version = store.limits().version
    assert backlogs.renew("w", 10).run() == (False, [])
    assert backlogs.renew("w", 10).run() == (True, [])
    assert backlogs.announce("w", ["q", "ä/{b}"]).run() == []
    names = "ä/{b}", "", "c"
    lanes = [Lane(name, "mail", rank) for name in names for rank in (0, 9)]
    parcels = [parcel(number, lane, 1.0) for number, lane in enumerate(lanes * 2)]
    assert backlogs.park("q", parcels, 100, busy=True).run() == [1] * 6 + [2] * 6
    limited = Level("task", "q:q/t:c/f:mail", Limit(1, 0.01))
    types = (TaskSpec("mail", (0, 9)),), (TaskSpec("mail", (0, 9), limited),)
    candidates = tuple(TenantSpec(name, types[name == "c"], 1.0, CANDIDATE.level) for name in names)
    reply = backlogs.dispatch("q", request_of(free=4, candidates=candidates), version).run()
    assert [one.owned.lane.tenant for one in reply.dispatched] == ["", "c", "ä/{b}", ""]
    assert [one.message for one in reply.dispatched] == [message_of(one.owned.item.uid) for one in reply.dispatched]
    first, second, third, fourth = (one.owned for one in reply.dispatched)
    assert len(backlogs.leased_tasks("w").run()) == 4
    settlement = Settlement(
        "w",
        (first.item.uid,),
        (first.item.uid, second.item.uid),
        ((second.item.uid, second.lane, False), (third.item.uid, third.lane, True)),
        (Refund((FAST, CANDIDATE.level, limited), 1.0, "acme", 1.0),),
    )
    assert backlogs.settle("q", settlement).run() == 2
    assert sorted(view.count for view in backlogs.view("q").lanes) == [2, 2, 2, 2, 2]
    assert backlogs.queues() == ["q"]
    assert backlogs.view("q").is_served
    assert backlogs.move("q", "ü", lanes[1], lambda message: message + b"!") == 2
    assert not backlogs.view("ü").is_served
    assert backlogs.move("ü", "q", lanes[1], lambda message: message[:-1]) == 2
    assert backlogs.purge("q", lanes[0]) == 2
    backlogs.renew("w", 0).run()
    assert reclaim(backlogs, "w") == 1
    assert backlogs.dispatch("q", request_of(), version).run() == LeaseLost()
    assert backlogs.view("q").lanes[0].count in (2, 1)
    assert fourth.lane == Lane("", "mail", 0)
