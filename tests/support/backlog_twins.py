"""Two stores that get the same calls: one in memory, one on a real server whose time the test sets."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import combinations

from redis_shape import packed_level, shape_of

from bucketflow.algorithm.mirror import GCRA
from bucketflow.redis_client.runner import ScriptRunner
from bucketflow.redis_client.scripts import Script, load_script
from bucketflow.testing import FakeClock, worst_excess
from bucketflow_celery.config.table import LimitTable
from bucketflow_celery.parking.worker_lease import reclaim
from bucketflow_celery.scheduling.admit import RESERVATION_TTL, AdmissionRequest
from bucketflow_celery.scheduling.model import (
    FULL,
    KNOWN,
    DispatchRequest,
    Lane,
    ParkedMessage,
    Refund,
    Settlement,
    TaskSpec,
    TenantSpec,
)
from bucketflow_celery.store.interfaces import ALL_QUEUES, LeaseLost, StaleLimits
from bucketflow_celery.store.redis_store import RedisStore
from bucketflow_celery.store.scripts import CONSTANTS
from bucketflow_celery.testing import MemoryStore

SECOND = 1_000_000
NOW = 50_000_000 * SECOND  # a day in 2025, counted from 2024
LEASE = 20.0
CORE = load_script(*GCRA, constants=CONSTANTS).text

#: Added to every operation: the test sets the time, no key expires, and notifications are recorded. An operation that
#: touches a key that it has not declared fails, as it would in a cluster.
PRELUDE = """
local server, declared = redis, {}
for _, key in ipairs(KEYS) do declared[key] = true end
now = function() return tonumber(server.call('GET', 'clock')) end
local function call(command, ...)
  local words = {...}
  if command == 'PUBLISH' then
    return server.call('RPUSH', 'calls', words[2])
  end
  local keys = {words[1]}
  if command == 'DEL' or command == 'MGET' then
    keys = words
  elseif command == 'ZUNIONSTORE' then
    keys = {words[1], words[3]}
  end
  for _, key in ipairs(keys) do
    assert(declared[key], command .. ' of a key that is not declared: ' .. tostring(key))
  end
  if command == 'SET' and words[3] == 'PX' then
    assert(words[4] >= 1)
    return server.call('SET', words[1], words[2])
  end
  return server.call(command, ...)
end
local redis = setmetatable({call = call, pcall = call}, {__index = server})
"""


@cache
def at_our_time(script: Script) -> Script:
    """Return *script* behind ``PRELUDE``."""
    return Script.of(script.name, CORE + PRELUDE + script.text.removeprefix(CORE))


class OurTime(ScriptRunner):
    """Runs scripts at the time that the server's key ``clock`` holds."""

    def run(self, script, keys, args):
        return super().run(at_our_time(script), keys, args)


@dataclass
class Worker:
    """One worker, and what it knows."""

    name: str
    knows: frozenset[str]
    table: LimitTable = field(default_factory=LimitTable)
    version: int = 0
    known: dict = field(default_factory=dict)
    tasks: dict = field(default_factory=dict)
    has: dict = field(default_factory=dict)

    def tenant_spec(self, queue, known):
        """Return the spec of a tenant, as ``bucketflow_celery.store.active_limits.ActiveLimits`` does."""
        tenant, types, own = known.tenant or None, [], None
        for task, ranks in known.types:
            if task not in self.knows:
                continue
            levels = {level.name: level for level in self.table.path(queue, tenant, task)}
            own = levels.get("tenant")
            paused = self.table.pause(queue, tenant, task) is not None
            types.append(TaskSpec(task, ranks, levels.get("task"), paused))
        return TenantSpec(known.tenant, tuple(types), self.table.weight(known.tenant), own)

    def request(self, queue, free):
        common = tuple(level for level in self.table.path(queue, None, "") if level.name in ("all", "queue"))
        candidates = tuple(self.tenant_spec(queue, known) for known in self.known.get(queue, ()))
        named = self.tasks.get(queue, ())
        own = tuple(task for task in named if task in self.knows)
        others = tuple(task for task in named if task not in self.knows)
        return DispatchRequest(self.name, free, common, candidates, own, others)


class Twins:
    """
    A store in memory and one on a server, which must agree on everything, and a record of what they promise.

    Args:
        client: Client of a server that no other test uses meanwhile.
        tasks: The task types. A worker may not know the last of them.
    """

    def __init__(self, client, tasks=("mail", "report", "odd")):
        client.flushall()
        self.client, self.tasks = client, tasks
        self.clock = FakeClock(NOW / SECOND)
        self.memory = MemoryStore(self.clock)
        self.redis = RedisStore(OurTime(client), "twin")
        self.listening = self.memory.backlogs.listen()
        self.listener = self.listening.__enter__()
        self.calls = []
        self.workers = {}
        self.versions = [("", "")]
        self.raw, self.paused = {}, set()
        self.counted = Counter()
        self.lanes = defaultdict(deque)  # (queue, lane) -> uids, in the order of dispatch
        self.moved = set()  # uids that were moved to another queue
        self.where = {}  # uid -> (queue, lane, "waiting" | worker | "ended" | "purged")
        self.dedup = deque()
        self.starts = {}  # key -> limit, and seconds and cost of each start
        self.shares = Shares()
        self.move(0)

    @property
    def now(self):
        return self.clock.now()

    def close(self):
        self.listening.__exit__(None, None, None)
        self.redis.close()

    def both(self, call):
        """Call both stores; return the result on which they agree."""
        ours, theirs = call(self.memory), call(self.redis)
        assert ours == theirs
        return ours

    # Steps

    def move(self, by):
        self.clock.advance(by / SECOND)
        self.client.set("clock", str(self.now))
        if by < 0:
            self.starts.clear()  # no window contains a clock that steps back

    def join(self, name, knows):
        """Return a new worker with a lease."""
        worker = self.workers[name] = Worker(name, frozenset(knows))
        self._read_limits(worker)
        self.renew(worker)
        return worker

    def renew(self, worker):
        """Renew a lease, and reclaim the tasks of expired ones; return whether the worker had a lease."""
        had_lease, expired = self.both(lambda store: store.backlogs.renew(worker.name, LEASE).run())
        for name in expired:
            if name != worker.name:
                self._reclaim(name)
        return had_lease

    def leave(self, worker):
        """Return all tasks of a worker, as a worker does that stops."""
        self.both(lambda store: store.backlogs.renew(worker.name, 0).run())
        self._reclaim(worker.name)

    def _reclaim(self, name):
        owned = self.both(lambda store: store.backlogs.leased_tasks(name).run())
        count = self.both(lambda store: reclaim(store.backlogs, name))
        assert count == len(owned) == sum(where == name for _, _, where in self.where.values())
        self.counted["reclaimed"] += count
        by_queue = defaultdict(list)
        for one in owned:
            by_queue[one.queue].append(one.uid)
        for uids in by_queue.values():
            for uid in reversed(uids):
                self._on_returned(uid)
        assert not self.both(lambda store: store.backlogs.leased_tasks(name).run())

    def park(self, queue, messages, limit=1000, *, busy=False):
        waiting = self.count(queue)
        positions = self.both(lambda store: store.backlogs.park(queue, messages, limit, busy=busy).run())
        for one, position in zip(messages, positions, strict=True):
            if position == KNOWN:
                assert one.uid in self.where
                self.counted["parked already"] += 1
            elif position == FULL:
                assert waiting >= limit
                self.counted["full"] += 1
            else:
                waiting += 1
                assert waiting <= limit
                uids = self.lanes[queue, one.lane]
                uids.append(one.uid)
                assert position == len(uids)
                assert one.uid not in self.dedup
                self.where[one.uid] = (queue, one.lane, "waiting")
                self.dedup.append(one.uid)
                self.counted["parked"] += 1
        self._record()
        return positions

    def dispatch(self, worker, queue, free):
        """Return the reply; ``None`` if the limits had changed."""
        request = worker.request(queue, free)
        replies = []
        for index, store in enumerate((self.memory, self.redis)):
            reply = store.backlogs.dispatch(queue, request, self.versions[worker.version][index]).run()
            if isinstance(reply, StaleLimits):
                reply = StaleLimits([pair[index] for pair in self.versions].index(reply.version))
            replies.append(reply)
        assert replies[0] == replies[1]
        reply = replies[0]
        if isinstance(reply, StaleLimits):
            assert reply.version != worker.version
            self.counted["another version"] += 1
            self._read_limits(worker)
            return None
        if isinstance(reply, LeaseLost):
            self.counted["no lease"] += 1
            return reply
        worker.known[queue], worker.tasks[queue] = reply.next, reply.tasks
        assert sum(dispatched.admitted for dispatched in reply.dispatched) <= free
        for dispatched in reply.dispatched:
            self._on_dispatched(worker, request, dispatched)
        if reply.wait:
            self.counted["waits"] += 1
        self._record()
        return reply

    def _on_dispatched(self, worker, request, dispatched):
        item, lane, queue = dispatched.owned.item, dispatched.owned.lane, dispatched.owned.queue
        assert self.where[item.uid] == (queue, lane, "waiting"), "no task is dispatched twice"
        assert self.lanes[queue, lane].popleft() == item.uid, "first come, first served"
        assert lane.rank <= min(
            (other.rank for (of, other), uids in self.lanes.items()
             if uids and of == queue and other[:2] == lane[:2]), default=lane.rank)  # fmt: skip
        assert dispatched.message == message_of(item.uid)
        self.where[item.uid] = (queue, lane, worker.name)
        path = request.path_of(lane)
        weight = next(one.weight for one in request.candidates if one.tenant == lane.tenant)
        worker.has[item.uid] = dispatched, path, item.cost / weight
        if dispatched.admitted:
            self.counted["admitted"] += 1
            self._on_charged(path, item.cost)
            self.shares.served(queue, lane.tenant, item.cost, weight)
        else:
            assert 0 < item.deadline <= self.now or any(item.cost > level.limit.capacity for level in path)
            self.counted["not admitted"] += 1

    def settle(self, worker, queue, *, ended=(), returned=(), confirm=0):
        """Settle tasks. *returned*: uid, and whether it may have started; if not, its tokens are refunded."""
        ended = [uid for uid in ended if self.where[uid][0] == queue]
        returned = [(uid, started) for uid, started in returned if self.where[uid][0] == queue]
        refunds = [
            Refund(path, dispatched.owned.item.cost, dispatched.owned.lane.tenant, share)
            for dispatched, path, share in (worker.has[uid] for uid, started in returned if not started)
            if dispatched.admitted
        ]
        sure = [self.dedup.popleft() for _ in range(min(confirm, len(self.dedup)))]
        self.dedup.extend(uid for uid in sure if self.where[uid][0] != queue)
        sure = [uid for uid in sure if self.where[uid][0] == queue]
        settlement = Settlement(
            worker.name,
            tuple(ended),
            tuple(sure),
            tuple((uid, self.where[uid][1], started) for uid, started in returned),
            tuple(refunds),
        )
        count = self.both(lambda store: store.backlogs.settle(queue, settlement).run())
        for path, cost, _, _ in refunds:
            for level in path:
                if level.key in self.starts:
                    self.starts[level.key][1].append((self.now / SECOND, -cost))
        for uid in ended:
            if self.where[uid][2] == worker.name:
                self.where[uid] = (*self.where[uid][:2], "ended")
                self.counted["ended"] += 1
        back = [uid for uid, _ in reversed(returned) if self.where[uid][2] == worker.name]
        for uid in back:
            self._on_returned(uid)
        assert count == len(back)
        self.counted["returned"] += count
        for uid in (*ended, *(uid for uid, _ in returned)):
            del worker.has[uid]
        self._record()

    def purge(self, queue, lane):
        count = self.both(lambda store: store.backlogs.purge(queue, lane))
        uids = self.lanes.pop((queue, lane), ())
        assert count == len(uids)
        for uid in uids:
            self.where[uid] = (queue, lane, "purged")
        self.counted["purged"] += count
        self._record()

    def transfer(self, queue, to, lane):
        count = self.both(lambda store: store.backlogs.move(queue, to, lane, lambda message: message))
        uids = self.lanes.pop((queue, lane), ())
        assert count == len(uids)
        self.lanes[to, lane].extend(uids)
        for uid in uids:
            self.where[uid] = (to, lane, "waiting")
        self.moved.update(uids)
        self.counted["moved"] += count
        self._record()

    def announce(self, worker, queues):
        reported = self.both(lambda store: store.backlogs.announce(worker.name, queues).run())
        self.counted["stranded"] += len(reported)

    def set_limits(self, raw):
        self.raw = raw or {}
        self._set(lambda store: store.set_limits(raw))

    def pause(self, name, *, paused):
        (self.paused.add if paused else self.paused.discard)(name)
        self._set(lambda store: store.pause(name, paused=paused))

    def _set(self, call):
        call(self.memory)
        call(self.redis)
        limits = [store.limits() for store in (self.memory, self.redis)]
        assert limits[0][1:] == limits[1][1:]
        pair = (limits[0].version, limits[1].version)
        if pair not in self.versions:
            assert not [one for one in self.versions if one[0] == pair[0] or one[1] == pair[1]]
            self.versions.append(pair)
        self.starts.clear()
        self.shares.restart()
        self.counted["limits"] += 1

    def _read_limits(self, worker):
        limits = self.memory.limits()
        worker.version = [pair[0] for pair in self.versions].index(limits.version)
        worker.table = replace(LimitTable.parse(limits.table or {}, []), paused=limits.paused)

    def admit(self, worker, queue, tasks):
        """Request admission of fresh tasks, each with tenant, task and cost; return the decisions, or ``None``."""
        requests = []
        for tenant, task, cost, parks in tasks:
            path = worker.table.path(queue, tenant or None, task)
            if path and all(cost <= level.limit.capacity for level in path):
                requests.append(
                    AdmissionRequest(path, cost, (0,) * len(path), backlog=queue if parks else None, tenant=tenant)
                )
        before = dict(self.memory._states)
        found = [
            store.admit(requests, self.versions[worker.version][index]).run()
            for index, store in enumerate((self.memory, self.redis))
        ]
        found = [None if isinstance(one, StaleLimits) else one for one in found]
        assert found[0] == found[1]
        for key, state in list(self.memory._states.items()):
            # Python keeps a level that has expired in Redis.
            if state is not before.get(key) and max(state.full_at, state.reserved_until) + RESERVATION_TTL <= self.now:
                del self.memory._states[key]
        for request, decision in zip(requests, found[0] or (), strict=False):
            if decision.admitted:
                overtaken = request.backlog and any(
                    uids for (of, lane), uids in self.lanes.items() if of == queue and lane.tenant == request.tenant
                )
                assert not overtaken
                self._on_charged(request.path, request.cost)
                self.counted["fresh"] += 1
            else:
                self.counted["blocked" if decision.binding is None else "refused"] += 1
        return found[0]

    # Invariants

    def count(self, queue):
        return sum(len(uids) for (of, _), uids in self.lanes.items() if of == queue)

    def _on_returned(self, uid):
        queue, lane, _ = self.where[uid]
        self.where[uid] = (queue, lane, "waiting")
        self.lanes[queue, lane].appendleft(uid)

    def _on_charged(self, path, cost):
        for level in path:
            limit, starts = self.starts.setdefault(level.key, (level.limit, []))
            assert limit == level.limit
            starts.append((self.now / SECOND, cost))

    def _record(self):
        """Record which tenants are ready, and check their shares."""
        for queue, backlog in self.memory.backlogs._backlogs.items():
            common = {
                name
                for name, tenant in backlog.tenants.items()
                if self.tasks[-1] not in tenant.types and all(backlog.ready.has(task, name) for task in tenant.types)
            }
            self.shares.record(queue, common)
            self.counted["share"] += self.shares.check(queue)

    def look(self):
        """Check that both stores show the same views."""
        for queue in self.both(lambda store: store.backlogs.queues()):
            ours, theirs = (store.backlogs.view(queue) for store in (self.memory, self.redis))
            assert (ours.now, ours.costs, ours.unclaimed) == (theirs.now, theirs.costs, theirs.unclaimed)
            assert ours.is_served == theirs.is_served
            assert sorted(ours.lanes, key=lambda view: view.lane) == sorted(theirs.lanes, key=lambda view: view.lane)
            assert sum(view.count for view in ours.lanes) == self.count(queue)
        for worker in self.workers.values():
            owned = self.both(lambda store, name=worker.name: store.backlogs.leased_tasks(name).run())
            mine = sorted(uid for uid, (_, _, where) in self.where.items() if where == worker.name)
            assert sorted(one.uid for one in owned) == mine, worker.name

    def check(self):
        """Check that both have stored the same, that no task was lost, and no limit exceeded."""
        self.look()
        while (call := self.listener.get(0.0001)) is not None:
            self.calls.append(call)
        assert [call.decode() for call in self.client.lrange("calls", 0, -1)] == self.calls
        self.counted["calls"] = len([call for call in self.calls if call != ALL_QUEUES])
        for queue, backlog in self.memory.backlogs._backlogs.items():
            assert memory_shape(backlog, self.versions) == shape_of(self.redis, queue, self.versions)
            waiting = [item.uid for _, items in backlog.lanes() for item in items]
            owned = [uid for uid, (of, _, where) in self.where.items() if of == queue and where in self.workers]
            there = sorted(uid for uid, (of, _, where) in self.where.items() if of == queue and where == "waiting")
            assert sorted(waiting) == there, "no task is lost"
            assert sorted(backlog.messages) == sorted(waiting + owned)
        workers = {name.decode(): at for name, at in self.client.zrange("{twin}:park:workers", 0, -1, withscores=True)}
        assert workers == self.memory.backlogs._leases.workers
        for key, state in self.memory._states.items():
            stored = self.client.get("{twin}:" + key)
            assert stored == packed_level(state), key
        for key, (limit, starts) in self.starts.items():
            assert worst_excess(starts, limit) <= limit.fill_rate * 1e-6 + 1e-6, (key, limit)


class Shares:
    """The shares of tenants that were ready all the time: in proportion to their weights, within one task of each."""

    def __init__(self):
        self.most = defaultdict(float)  # (queue, tenant) -> the largest task over weight
        self.restart()

    def restart(self):
        """Begin again, under other weights. A tenant that was served a large task before still waits for the others."""
        self.since = defaultdict(dict)  # queue -> tenant -> first record at which it was ready
        self.got = defaultdict(lambda: defaultdict(float))  # queue -> tenant -> service over weight
        self.records = defaultdict(list)  # queue -> at each record: tenant -> service over weight

    def served(self, queue, tenant, cost, weight):
        self.got[queue][tenant] += cost / weight
        self.most[queue, tenant] = max(self.most[queue, tenant], cost / weight)

    def record(self, queue, ready):
        self.records[queue].append(dict(self.got[queue]))
        last = len(self.records[queue]) - 1
        self.since[queue] = {tenant: self.since[queue].get(tenant, last) for tenant in ready}

    def check(self, queue):
        """Check each pair of tenants; return of how many both were served."""
        last, found = self.records[queue][-1], 0
        for one, other in combinations(self.since[queue], 2):
            first = self.records[queue][max(self.since[queue][one], self.since[queue][other])]
            got = [last.get(tenant, 0.0) - first.get(tenant, 0.0) for tenant in (one, other)]
            assert abs(got[0] - got[1]) <= self.most[queue, one] + self.most[queue, other] + 1e-6, (one, other)
            found += min(got) > 0
        return found


def parcel(number, lane, cost=1.0, max_wait_us=0, *, redelivered=False):
    uid = uid_of(number)
    return ParkedMessage(uid, lane, message_of(uid), cost, max_wait_us, redelivered)


def uid_of(number):
    return hashlib.blake2b(str(number).encode(), digest_size=14).digest()


def message_of(uid):
    return b"\x00message\r\n" + uid


def memory_shape(backlog, versions):
    """Return what *backlog* holds, in the form of :func:`redis_shape.shape_of`."""
    return {
        "tenants": {
            name: (tenant.tag, tenant.turn, tenant.cost, {
                task: (kind.turn, {rank: list(items) for rank, items in kind.lanes.items()})
                for task, kind in tenant.types.items()
            })
            for name, tenant in backlog.tenants.items()
        },
        "ready": backlog.ready.by_task,
        "types": backlog.types,
        "delayed": backlog.delayed,
        "idle": backlog.idle,
        "polls": backlog.polls,
        "dedup": backlog.dedup,
        "messages": backlog.messages,
        "meta": (
            backlog.virtual,
            backlog.count,
            backlog.notified_at,
            [pair[0] for pair in versions].index(backlog.version),
        ),
    }  # fmt: skip


__all__ = [
    "LEASE",
    "NOW",
    "SECOND",
    "Lane",
    "OurTime",
    "Twins",
    "at_our_time",
    "message_of",
    "parcel",
    "uid_of",
]
