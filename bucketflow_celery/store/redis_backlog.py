"""Backlogs in Redis or Valkey: the arguments of each script, and the meaning of its reply."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Generic, TypeVar

from bucketflow.limit import SECOND
from bucketflow.redis_client.encoding import exact, text_of
from bucketflow.redis_client.runner import ScriptRunner, Subscription
from bucketflow.redis_client.scripts import Script
from bucketflow_celery.config.levels import Level, quoted
from bucketflow_celery.scheduling.model import (
    DispatchReply,
    DispatchRequest,
    Lane,
    ParkedMessage,
    Settlement,
)
from bucketflow_celery.store.interfaces import (
    BacklogView,
    LaneView,
    LeasedTaskView,
    LeaseLost,
    Listener,
    StaleLimits,
)
from bucketflow_celery.store.replies import dispatch_reply
from bucketflow_celery.store.scripts import backlog_script, level_script

__all__ = ["RedisBacklogs", "RedisStoreCall"]

T = TypeVar("T")

_PARTS = ("messages", "tenants", "ready", "delayed", "idle", "polls", "dedup", "meta")
_LEASE_LOST = -2
#: Most lanes that one call reads, and most tasks that one call purges.
_PAGE_SIZE = 500
#: Most tasks that one call moves, and bytes of messages after which it moves no further one.
_MOVE_SIZE, _MOVE_BYTES = 100, 1 << 20


@dataclass(frozen=True, slots=True)
class RedisStoreCall(Generic[T]):
    """
    Implements :class:`~bucketflow_celery.store.interfaces.StoreCall`: one run of a script.

    Attributes:
        runner: Runs the script.
        script: The operation.
        keys: Its keys.
        args: Its arguments.
        read: Converts the server's reply.
    """

    runner: ScriptRunner
    script: Script
    keys: Sequence[bytes]
    args: Sequence[str | bytes]
    read: Callable[[Any], T]

    def run(self) -> T:
        """Run the script and wait for its reply. Raises ``StoreUnavailable``."""
        return self.read(self.runner.run(self.script, self.keys, self.args))


@dataclass(slots=True)
class _Keys:
    """The keys of one call, each once. Indexes count from 1, as in Lua."""

    keys: list[bytes]
    _index: dict[bytes, int] = field(default_factory=dict)

    def index(self, key: bytes) -> str:
        if key not in self._index:
            self.keys.append(key)
            self._index[key] = len(self.keys)
        return str(self._index[key])


class RedisBacklogs:
    """
    Implements :class:`bucketflow_celery.store.interfaces.BacklogStore`; the server's clock is the only clock.

    Args:
        runner: Runs scripts on the server.
        prefix: Of every key, with its hash tag.

    Attributes:
        channel: The pub/sub channel of the notifications.
    """

    def __init__(self, runner: ScriptRunner, prefix: str) -> None:
        self._runner = runner
        self._prefix = prefix
        self.channel = f"{prefix}calls"
        self._queues = f"{prefix}park:queues".encode()
        self._workers = f"{prefix}park:workers".encode()
        self._served = f"{prefix}park:served".encode()

    def order_keys(self, queue: str) -> Sequence[bytes]:
        """Return the keys that tell whether a new task would overtake a parked one: tenants, ready, delayed."""
        return _shared_keys(self._prefix, queue, "")[2:5]

    def park(
        self, queue: str, messages: Sequence[ParkedMessage], limit: int, *, busy: bool
    ) -> RedisStoreCall[list[int]]:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""
        keys = self._keys(queue)
        args: list[str | bytes] = [queue, self.channel, str(limit), str(int(busy))]
        for message in messages:
            lane = message.lane
            args += (
                message.uid,
                keys.index(lane_key(self._prefix, queue, lane)),
                lane.tenant,
                lane.task,
                str(lane.rank),
            )
            args += (exact(message.cost), str(message.max_wait_us), str(int(message.redelivered)), message.message)
        return self._call("park", keys, args, list)

    def dispatch(
        self, queue: str, request: DispatchRequest, version: str
    ) -> RedisStoreCall[DispatchReply | StaleLimits | LeaseLost]:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""
        keys = self._keys(queue, request.worker)

        def levels(*given: Level | None) -> list[str]:
            found = [level for level in given if level is not None]
            return [str(len(found)), *(word for level in found for word in self._level(keys, level))]

        args = [version, queue, self.channel, request.worker, str(request.free)]
        args += (str(len(request.tasks)), *request.tasks, str(len(request.other_tasks)), *request.other_tasks)
        args += levels(*request.common)
        for candidate in request.candidates:
            args += (candidate.tenant, exact(candidate.weight))
            args += (*levels(candidate.level), str(len(candidate.types)))
            for kind in candidate.types:
                args += (kind.task, str(int(kind.paused)), *levels(kind.level))
                args.append(str(len(kind.ranks)))
                for rank in kind.ranks:
                    lane = Lane(candidate.tenant, kind.task, rank)
                    args += (str(rank), keys.index(lane_key(self._prefix, queue, lane)))

        def read(reply: Any) -> DispatchReply | StaleLimits | LeaseLost:
            if len(reply) == 1:
                return StaleLimits(reply[0].decode())
            if reply[1] == _LEASE_LOST:
                return LeaseLost()
            return dispatch_reply(queue, reply)

        return self._call("dispatch", keys, args, read)

    def settle(self, queue: str, settlement: Settlement) -> RedisStoreCall[int]:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""
        keys = self._keys(queue, settlement.worker)
        args: list[str | bytes] = [queue, self.channel, settlement.worker, str(int(settlement.reclaims))]
        args += (str(len(settlement.ended)), *settlement.ended)
        args += (str(len(settlement.confirmed)), *settlement.confirmed)
        args.append(str(len(settlement.returned)))
        for uid, lane, may_have_started in reversed(settlement.returned):  # each is put in front of the one before
            args += (uid, keys.index(lane_key(self._prefix, queue, lane)), str(int(may_have_started)))
        for path, cost, tenant, share in settlement.refunds:
            args += (exact(cost), tenant, exact(share), str(len(path)))
            args += (keys.index(self._key(level.key)) for level in path)
        return self._call("settle", keys, args, lambda reply: int(reply[1]))

    def renew(self, worker: str, seconds: float) -> RedisStoreCall[tuple[bool, list[str]]]:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""
        script = level_script("renew_lease")
        args = [worker, str(round(seconds * SECOND))]
        return RedisStoreCall(
            self._runner,
            script,
            [self._workers],
            args,
            lambda reply: (reply[0] == 1, [text_of(name) for name in reply[1:]]),
        )

    def announce(self, worker: str, queues: Sequence[str]) -> RedisStoreCall[list[str]]:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""
        keys = [self._served, self._workers, self._queues, self._key("park:stranded")]
        script = level_script("announce_queues")
        return RedisStoreCall(self._runner, script, keys, [worker, *queues], lambda reply: list(map(text_of, reply)))

    def leased_tasks(self, worker: str) -> RedisStoreCall[list[LeasedTaskView]]:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""

        def read(reply: Any) -> list[LeasedTaskView]:
            views = [
                LeasedTaskView(uid, text_of(queue), Lane(text_of(tenant), text_of(task), rank), since)
                for uid, queue, tenant, task, rank, since in reply
            ]
            return sorted(views, key=lambda view: (view.since, view.uid))

        return RedisStoreCall(self._runner, level_script("leased_tasks"), [self._key(_tasks_of(worker))], [], read)

    def purge(self, queue: str, lane: Lane) -> int:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""
        purged = 0
        while True:
            keys = self._keys(queue)
            keys.index(lane_key(self._prefix, queue, lane))
            args = [queue, lane.tenant, lane.task, str(lane.rank), str(_PAGE_SIZE)]
            count = self._call("purge", keys, args, int).run()
            purged += count
            if count < _PAGE_SIZE:  # in pages, because the server serves no other client meanwhile
                return purged

    def move(self, queue: str, to: str, lane: Lane, change: Callable[[bytes], bytes]) -> int:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""
        source, target = (lane_key(self._prefix, name, lane) for name in (queue, to))
        page_keys = _Keys([*_shared_keys(self._prefix, queue, ""), source])
        keys = _Keys([*page_keys.keys[:-1], *_shared_keys(self._prefix, to, ""), source, target])
        moved, read = 0, self._call("lane_page", page_keys, [str(_MOVE_SIZE), str(_MOVE_BYTES)], list)
        page, before = read.run(), None
        while page and page != before:  # it stays the same if the lane is not in the scheduling state
            args: list[str | bytes] = [queue, to, self.channel, lane.tenant, lane.task, str(lane.rank)]
            for uid, message in zip(*[iter(page)] * 2, strict=True):
                args += (uid, change(message))
            moved += self._call("move", keys, args, int).run()
            page, before = read.run(), page
        return moved

    def queues(self) -> list[str]:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""
        script = level_script("parked_queues")
        return sorted(text_of(name) for name in self._runner.run(script, [self._queues], []))

    def view(self, queue: str) -> BacklogView:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""
        viewed = _Keys([*_shared_keys(self._prefix, queue, ""), self._served])
        now, tenants, unclaimed, is_served = self._call("backlog_view", viewed, [queue], lambda reply: reply).run()
        costs = {text_of(name): float(cost) for name, cost, _ in tenants}
        lanes = [
            (Lane(text_of(name), text_of(task), rank), count)
            for name, _, lanes in tenants
            for task, rank, count in lanes
        ]
        since: list[int] = []
        for at in range(0, len(lanes), _PAGE_SIZE):
            keys = [lane_key(self._prefix, queue, lane) for lane, _ in lanes[at : at + _PAGE_SIZE]]
            since += self._runner.run(level_script("lane_heads"), keys, [])
        found = [LaneView(lane, count, at or now) for (lane, count), at in zip(lanes, since, strict=True)]
        return BacklogView(now, costs, found, frozenset(map(text_of, unclaimed)), is_served == 1)

    def listen(self) -> AbstractContextManager[Listener]:
        """See :class:`~bucketflow_celery.store.interfaces.BacklogStore`."""
        return self._listen()

    @contextmanager
    def _listen(self) -> Iterator[Listener]:
        with self._runner.subscribe(self.channel) as subscription:
            yield _Listener(subscription)

    def _keys(self, queue: str, worker: str = "") -> _Keys:
        return _Keys(list(_shared_keys(self._prefix, queue, worker)))

    def _call(self, name: str, keys: _Keys, args: Sequence[str | bytes], read: Callable[[Any], T]) -> RedisStoreCall[T]:
        return RedisStoreCall(self._runner, backlog_script(name), keys.keys, args, read)

    def _level(self, keys: _Keys, level: Level) -> tuple[str, str, str]:
        return keys.index(self._key(level.key)), exact(level.limit.capacity), exact(level.limit.fill_rate)

    def _key(self, name: str) -> bytes:
        return (self._prefix + name).encode()


@lru_cache(maxsize=1024)
def _shared_keys(prefix: str, queue: str, worker: str) -> tuple[bytes, ...]:
    """Return the first keys of every operation on a backlog, as ``lua/backlog.lua`` lists them."""
    names = [f"park:{quoted(queue)}:{part}" for part in _PARTS]
    types = f"park:{quoted(queue)}:types"
    names = ["limits:version", *names, _tasks_of(worker), "park:workers", "park:queues", types]
    return tuple((prefix + name).encode() for name in names)


@lru_cache(maxsize=8192)
def lane_key(prefix: str, queue: str, lane: Lane) -> bytes:
    """Return the key of the parked tasks of *lane* in *queue*."""
    return f"{prefix}park:{quoted(queue)}:lane:{quoted(lane.tenant)}/{quoted(lane.task)}/{lane.rank}".encode()


def _tasks_of(worker: str) -> str:
    """Return the name of the key of the tasks dispatched to *worker*."""
    return f"park:worker:{quoted(worker)}"


class _Listener:
    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    def get(self, timeout: float) -> str | None:
        message = self._subscription.get(timeout)
        return None if message is None else text_of(message)
