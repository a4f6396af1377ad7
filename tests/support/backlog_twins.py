"""Two stores that are told the same: one in memory, one on a real server at times we choose. And what both promise."""

from __future__ import annotations

import hashlib
import struct
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import combinations

from redis_shape import shape_of

from bucketflow.redis_client.runner import ScriptRunner
from bucketflow.redis_client.scripts import Script
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
    Settlement,
    TaskSpec,
    TenantSpec,
)
from bucketflow_celery.store.interfaces import ALL_QUEUES, LeaseLost, StaleLimits
from bucketflow_celery.store.redis_store import RedisStore
from bucketflow_celery.testing import MemoryStore

SECOND = 1_000_000
NOW = 50_000_000 * SECOND  # some day of 2025, on the clock that counts from 2024
LEASE = 20.0
CORE = Script.compose("core", "").text

#: In front of every operation: the time is what we say, no key expires, calls are taken down, and an operation that
#: touches a key it has not declared fails: a cluster would not allow it.
PRELUDE = """
local server, declared = redis, {}
for _, key in ipairs(KEYS) do declared[key] = true end
now = function() return tonumber(server.call('GET', 'clock')) end
local redis = setmetatable({call = function(command, ...)
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
end}, {__index = server})
"""


@cache
def at_our_time(script: Script) -> Script:
    """Return *script* behind ``PRELUDE``."""
    text = CORE + PRELUDE + script.text.removeprefix(CORE)
    return Script(script.name, text, hashlib.sha1(text.encode()).hexdigest())


class OurTime(ScriptRunner):
    """Runs scripts at the time that the server's key ``clock`` holds."""

    def run(self, script, keys, args):
        return super().run(at_our_time(script), keys, args)


@dataclass
class Worker:
    """What one worker knows."""

    name: str
    knows: frozenset[str]
    table: LimitTable = field(default_factory=LimitTable)
    version: int = 0
    known: dict = field(default_factory=dict)
    has: dict = field(default_factory=dict)

    def tenant_spec(self, queue, known):
        """Return what ``bucketflow_celery.store.active_limits.ActiveLimits`` says about a tenant."""
        tenant, types, own = known.tenant or None, [], None
        for task, ranks in known.types:
            levels = {level.name: level for level in self.table.path(queue, tenant, task)}
            own = levels.get("tenant")
            paused = self.table.pause(queue, tenant, task) is not None
            types.append(TaskSpec(task, ranks, levels.get("task"), task in self.knows, paused))
        return TenantSpec(known.tenant, tuple(types), self.table.weight(known.tenant), own)

    def request(self, queue, free):
        common = tuple(level for level in self.table.path(queue, None, "") if level.name in ("all", "queue"))
        candidates = tuple(self.tenant_spec(queue, known) for known in self.known.get(queue, ()))
        return DispatchRequest(self.name, free, common, candidates)


class Twins:
    """
    A store in memory and one on a server, that must agree on everything, and a ledger of what they promise.

    Args:
        client: Of a server of our own, for the time being.
        tasks: The task types there are; a worker may not know the last of them.
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
        self.lines = defaultdict(deque)  # (queue, lane) -> uids, as they must be dispatched out
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

    def both(self, ask):
        """AdmissionRequest both; return what they agree on."""
        ours, theirs = ask(self.memory), ask(self.redis)
        assert ours == theirs
        return ours

    # What happens

    def move(self, by):
        self.clock.advance(by / SECOND)
        self.client.set("clock", str(self.now))
        if by < 0:
            self.starts.clear()  # no window contains a clock that was set back

    def join(self, name, knows):
        """Return a new worker with a lease."""
        worker = self.workers[name] = Worker(name, frozenset(knows))
        self._read_limits(worker)
        self.renew(worker)
        return worker

    def renew(self, worker):
        """Renew a lease, and take from the dead what they have; return whether there was one."""
        was_known, dead = self.both(lambda store: store.backlogs.renew(worker.name, LEASE).run())
        for name in dead:
            if name != worker.name:
                self._reclaim(name)
        return was_known

    def leave(self, worker):
        """Give back all that a worker has, as one does that ends."""
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
                self._back(uid)
        assert not self.both(lambda store: store.backlogs.leased_tasks(name).run())

    def park(self, queue, parcels, limit=1000, *, busy=False):
        waiting = self.count(queue)
        positions = self.both(lambda store: store.backlogs.park(queue, parcels, limit, busy=busy).run())
        for parcel, position in zip(parcels, positions, strict=True):
            if position == KNOWN:
                assert parcel.uid in self.where
                self.counted["known"] += 1
            elif position == FULL:
                assert waiting >= limit
                self.counted["full"] += 1
            else:
                waiting += 1
                assert waiting <= limit
                line = self.lines[queue, parcel.lane]
                line.append(parcel.uid)
                assert position == len(line)
                assert parcel.uid not in self.dedup
                self.where[parcel.uid] = (queue, parcel.lane, "waiting")
                self.dedup.append(parcel.uid)
                self.counted["parked"] += 1
        self._note()
        return positions

    def dispatch(self, worker, queue, free):
        """Return the reply; ``None`` if the limits had changed."""
        request = worker.request(queue, free)
        answers = []
        for index, store in enumerate((self.memory, self.redis)):
            answer = store.backlogs.dispatch(queue, request, self.versions[worker.version][index]).run()
            if isinstance(answer, StaleLimits):
                answer = StaleLimits([pair[index] for pair in self.versions].index(answer.version))
            answers.append(answer)
        assert answers[0] == answers[1]
        answer = answers[0]
        if isinstance(answer, StaleLimits):
            assert answer.version != worker.version
            self.counted["another version"] += 1
            self._read_limits(worker)
            return None
        if isinstance(answer, LeaseLost):
            self.counted["no lease"] += 1
            return answer
        worker.known[queue] = answer.next
        assert sum(dispatched.admitted for dispatched in answer.dispatched) <= free
        for dispatched in answer.dispatched:
            self._handed(worker, request, dispatched)
        if answer.wait:
            self.counted["told to wait"] += 1
        self._note()
        return answer

    def _handed(self, worker, request, dispatched):
        item, lane, queue = dispatched.owned.item, dispatched.owned.lane, dispatched.owned.queue
        assert self.where[item.uid] == (queue, lane, "waiting"), "nothing is dispatched out twice"
        assert self.lines[queue, lane].popleft() == item.uid, "first come, first served"
        assert lane.rank <= min(
            (other.rank for (of, other), line in self.lines.items()
             if line and of == queue and other[:2] == lane[:2]), default=lane.rank)  # fmt: skip
        assert dispatched.message == message_of(item.uid)
        self.where[item.uid] = (queue, lane, worker.name)
        path = request.path_of(lane)
        worker.has[item.uid] = dispatched, path
        if dispatched.admitted:
            self.counted["admitted"] += 1
            self._took(path, item.cost)
            weight = next(one.weight for one in request.candidates if one.tenant == lane.tenant)
            self.shares.served(queue, lane.tenant, item.cost, weight)
        else:
            assert 0 < item.deadline <= self.now or any(item.cost > level.limit.capacity for level in path)
            self.counted["not admitted"] += 1

    def settle(self, worker, queue, *, ended=(), returned=(), confirm=0):
        """*returned*: uid, and whether it may have started; what has not gets its tokens back."""
        ended = [uid for uid in ended if self.where[uid][0] == queue]
        returned = [(uid, started) for uid, started in returned if self.where[uid][0] == queue]
        refunds = [
            (path, dispatched.owned.item.cost)
            for dispatched, path in (worker.has[uid] for uid, started in returned if not started)
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
        for path, cost in refunds:
            for level in path:
                if level.key in self.starts:
                    self.starts[level.key][1].append((self.now / SECOND, -cost))
        for uid in ended:
            if self.where[uid][2] == worker.name:
                self.where[uid] = (*self.where[uid][:2], "ended")
                self.counted["ended"] += 1
        back = [uid for uid, _ in reversed(returned) if self.where[uid][2] == worker.name]
        for uid in back:
            self._back(uid)
        assert count == len(back)
        self.counted["returned"] += count
        for uid in (*ended, *(uid for uid, _ in returned)):
            del worker.has[uid]
        self._note()

    def purge(self, queue, lane):
        count = self.both(lambda store: store.backlogs.purge(queue, lane))
        line = self.lines.pop((queue, lane), ())
        assert count == len(line)
        for uid in line:
            self.where[uid] = (queue, lane, "purged")
        self.counted["purged"] += count
        self._note()

    def set_limits(self, raw):
        self.raw = raw or {}
        self._tell(lambda store: store.set_limits(raw))

    def pause(self, name, *, paused):
        (self.paused.add if paused else self.paused.discard)(name)
        self._tell(lambda store: store.pause(name, paused=paused))

    def _tell(self, tell):
        tell(self.memory)
        tell(self.redis)
        told = [store.limits() for store in (self.memory, self.redis)]
        assert told[0][1:] == told[1][1:]
        pair = (told[0].version, told[1].version)
        if pair not in self.versions:
            assert not [one for one in self.versions if one[0] == pair[0] or one[1] == pair[1]]
            self.versions.append(pair)
        self.starts.clear()
        self.shares.restart()
        self.counted["limits"] += 1

    def _read_limits(self, worker):
        told = self.memory.limits()
        worker.version = [pair[0] for pair in self.versions].index(told.version)
        worker.table = replace(LimitTable.parse(told.table or {}, []), paused=told.paused)

    def admit(self, worker, queue, asks):
        """AdmissionRequest for fresh tasks, each with its tenant, task and cost; return the answers, or ``None``."""
        questions = []
        for tenant, task, cost, parks in asks:
            path = worker.table.path(queue, tenant or None, task)
            if path and all(cost <= level.limit.capacity for level in path):
                questions.append(
                    AdmissionRequest(path, cost, (0,) * len(path), backlog=queue if parks else None, tenant=tenant)
                )
        before = dict(self.memory._states)
        found = [
            store.admit(questions, self.versions[worker.version][index]).run()
            for index, store in enumerate((self.memory, self.redis))
        ]
        found = [None if isinstance(one, StaleLimits) else one for one in found]
        assert found[0] == found[1]
        for key, state in list(self.memory._states.items()):
            # Where Python keeps what says nothing any more, Redis keeps nothing.
            if state is not before.get(key) and max(state.full_at, state.reserved_until) + RESERVATION_TTL <= self.now:
                del self.memory._states[key]
        for ask, answer in zip(questions, found[0] or (), strict=False):
            if answer.admitted:
                overtaken = ask.backlog and any(
                    line for (of, lane), line in self.lines.items() if of == queue and lane.tenant == ask.tenant
                )
                assert not overtaken
                self._took(ask.path, ask.cost)
                self.counted["fresh"] += 1
            else:
                self.counted["blocked" if answer.binding is None else "refused"] += 1
        return found[0]

    # What is true all the time

    def count(self, queue):
        return sum(len(line) for (of, _), line in self.lines.items() if of == queue)

    def _back(self, uid):
        queue, lane, _ = self.where[uid]
        self.where[uid] = (queue, lane, "waiting")
        self.lines[queue, lane].appendleft(uid)

    def _took(self, path, cost):
        for level in path:
            limit, starts = self.starts.setdefault(level.key, (level.limit, []))
            assert limit == level.limit
            starts.append((self.now / SECOND, cost))

    def _note(self):
        """Take note of who could have been served all the time, and check what they got."""
        for queue, backlog in self.memory.backlogs._backlogs.items():
            common = {name for name in backlog.ready if self.tasks[-1] not in backlog.tenants[name].types}
            self.shares.note(queue, common)
            self.counted["share"] += self.shares.check(queue)

    def look(self):
        """See that both show the same to those who look."""
        for queue in self.both(lambda store: store.backlogs.queues()):
            ours, theirs = (store.backlogs.view(queue) for store in (self.memory, self.redis))
            assert (ours.now, ours.costs) == (theirs.now, theirs.costs)
            assert sorted(ours.lanes, key=lambda view: view.lane) == sorted(theirs.lanes, key=lambda view: view.lane)
            assert sum(view.count for view in ours.lanes) == self.count(queue)
        for worker in self.workers.values():
            owned = self.both(lambda store, name=worker.name: store.backlogs.leased_tasks(name).run())
            mine = sorted(uid for uid, (_, _, where) in self.where.items() if where == worker.name)
            assert sorted(one.uid for one in owned) == mine, worker.name

    def check(self):
        """See that both have stored the same, that nothing was lost, and no limit exceeded."""
        self.look()
        while (call := self.listener.get(0.0001)) is not None:
            self.calls.append(call)
        assert [call.decode() for call in self.client.lrange("calls", 0, -1)] == self.calls
        self.counted["calls"] = len([call for call in self.calls if call != ALL_QUEUES])
        for queue, backlog in self.memory.backlogs._backlogs.items():
            assert memory_shape(backlog, self.versions) == shape_of(self.redis, queue, self.versions)
            waiting = [item.uid for _, line in backlog.lanes() for item in line]
            owned = [uid for uid, (of, _, where) in self.where.items() if of == queue and where in self.workers]
            there = sorted(uid for uid, (of, _, where) in self.where.items() if of == queue and where == "waiting")
            assert sorted(waiting) == there, "nothing is lost"
            assert sorted(backlog.messages) == sorted(waiting + owned)
        workers = {name.decode(): at for name, at in self.client.zrange("{twin}:park:workers", 0, -1, withscores=True)}
        assert workers == self.memory.backlogs._workers
        for key, state in self.memory._states.items():
            stored = self.client.get("{twin}:" + key)
            assert stored == struct.pack(
                "<dddd", state.full_at, state.reserved_until, state.capacity, state.fill_rate
            ), key
        for key, (limit, starts) in self.starts.items():
            assert worst_excess(starts, limit) <= limit.fill_rate * 1e-6 + 1e-6, (key, limit)


class Shares:
    """What tenants got that could have been served all the time: within one task of what each other's weight says."""

    def __init__(self):
        self.most = defaultdict(float)  # (queue, tenant) -> the largest task over weight
        self.restart()

    def restart(self):
        """Begin again, under other weights; who was served a large task before it still waits for the others."""
        self.since = defaultdict(dict)  # queue -> tenant -> at which note it could be served at first
        self.got = defaultdict(lambda: defaultdict(float))  # queue -> tenant -> service over weight
        self.notes = defaultdict(list)  # queue -> at each note: tenant -> service over weight

    def served(self, queue, tenant, cost, weight):
        self.got[queue][tenant] += cost / weight
        self.most[queue, tenant] = max(self.most[queue, tenant], cost / weight)

    def note(self, queue, ready):
        self.notes[queue].append(dict(self.got[queue]))
        last = len(self.notes[queue]) - 1
        self.since[queue] = {tenant: self.since[queue].get(tenant, last) for tenant in ready}

    def check(self, queue):
        """Return how many pairs were looked at that both were served."""
        last, found = self.notes[queue][-1], 0
        for one, other in combinations(self.since[queue], 2):
            first = self.notes[queue][max(self.since[queue][one], self.since[queue][other])]
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
                task: (kind.turn, {rank: list(line) for rank, line in kind.lanes.items()})
                for task, kind in tenant.types.items()
            })
            for name, tenant in backlog.tenants.items()
        },
        "ready": backlog.ready,
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
