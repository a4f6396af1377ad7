"""Levels and limits in Redis or Valkey: the arguments of each script, and the meaning of its reply."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from bucketflow.limit import SECOND
from bucketflow.process_bound import ProcessBound
from bucketflow.redis_client.encoding import exact
from bucketflow.redis_client.runner import ScriptRunner
from bucketflow_celery.config.levels import Level
from bucketflow_celery.scheduling.admit import AdmissionDecision, AdmissionRequest, LevelState
from bucketflow_celery.store.interfaces import Announced, FleetLimits, StaleLimits
from bucketflow_celery.store.permissions import check_access
from bucketflow_celery.store.redis_backlog import RedisBacklogs, RedisStoreCall
from bucketflow_celery.store.scripts import level_script

__all__ = ["RedisStore"]

#: In place of a version that must be in force. No version has this form.
ANY_VERSION = "*"


class RedisStore(ProcessBound):
    """
    Implements :class:`bucketflow_celery.store.interfaces.Store`; the server's clock is the only clock.

    Args:
        runner: Runs scripts on the server, with a deadline and without retries.
        namespace: Prefix of every key. It is a hash tag, so that a cluster keeps all keys in one slot.
    """

    _instead = "create one in each process, with the same Redis"

    def __init__(self, runner: ScriptRunner, namespace: str) -> None:
        self.runner = runner
        self._prefix = f"{{{namespace}}}:"
        self._table_keys = [self._key("limits:version"), self._key("limits"), self._key("limits:paused")]
        self._purges = self._key("limits:purges")
        self.backlogs = RedisBacklogs(runner, self._prefix)

    def admit(
        self, requests: Sequence[AdmissionRequest], version: str
    ) -> RedisStoreCall[Sequence[AdmissionDecision] | StaleLimits]:
        """See :class:`~bucketflow_celery.store.interfaces.Store`."""
        keys, tenants = self._table_keys[:1], []
        limits: list[float] = []
        tasks: list[float] = []
        parked: list[str] = []
        index: dict[str, int] = {}
        for request in requests:
            queue = 0
            if request.backlog is not None:
                if request.backlog not in parked:
                    parked.append(request.backlog)
                queue = parked.index(request.backlog) + 1
                tenants.append(request.tenant)
            tasks += (request.cost, request.max_wait_us, queue, len(request.path))
            for level, due in zip(request.path, request.reservations, strict=True):
                number = index.get(level.key)
                if number is None:
                    number = index[level.key] = len(keys)
                    keys.append(self._key(level.key))
                    limits += (level.limit.capacity, level.limit.fill_rate, level.blocks_queue)
                tasks += (number, due)
        for name in parked:
            keys += self.backlogs.order_keys(name)

        def read(reply: Any) -> Sequence[AdmissionDecision] | StaleLimits:
            if isinstance(reply, list):
                return StaleLimits(reply[0].decode(errors="replace"))
            return _decisions(requests, struct.unpack(f"<{len(reply) // 8}d", reply))

        args: list[str | bytes] = [version, _doubles(limits), _doubles(tasks), *tenants]
        return RedisStoreCall(self.runner, level_script("admit"), keys, args, read)

    def cancel_reservation(self, request: AdmissionRequest) -> None:
        """See :class:`~bucketflow_celery.store.interfaces.Store`."""
        keys: list[bytes] = []
        args = [exact(request.cost)]
        for level, due in zip(request.path, request.reservations, strict=True):
            if due:
                keys.append(self._key(level.key))
                args += (exact(level.limit.capacity), exact(level.limit.fill_rate), str(due))
        if keys:
            self.runner.run(level_script("cancel_reservation"), keys, args)

    def charge(self, costs: Sequence[tuple[Level, float]]) -> RedisStoreCall[None]:
        """See :class:`~bucketflow_celery.store.interfaces.Store`."""
        keys = [self._key(level.key) for level, _ in costs]
        args: list[str | bytes] = []
        for level, cost in costs:
            args += map(exact, (level.limit.capacity, level.limit.fill_rate, cost))
        return RedisStoreCall(self.runner, level_script("charge"), keys, args, lambda _reply: None)

    def peek(self, path: Sequence[Level]) -> tuple[int, list[LevelState]]:
        """See :class:`~bucketflow_celery.store.interfaces.Store`."""
        if not path:
            return 0, []
        reply = self.runner.run(level_script("peek"), [self._key(level.key) for level in path], [])
        numbers = [float(number) for number in reply[1:]]
        return int(reply[0]), [LevelState(*numbers[at : at + 6]) for at in range(0, len(numbers), 6)]

    def limits(self) -> FleetLimits:
        """See :class:`~bucketflow_celery.store.interfaces.Store`."""
        version, raw, *paused = self.runner.run(level_script("limits"), self._table_keys, [])
        table = _table(raw) if raw else None
        return FleetLimits(version.decode(errors="replace"), table, frozenset(name.decode() for name in paused))

    def set_limits(self, raw: Mapping[str, Any] | None, version: str | None = None) -> StaleLimits | None:
        """See :class:`~bucketflow_celery.store.interfaces.Store`."""
        text = "" if raw is None else json.dumps(raw, sort_keys=True)
        args = [self.backlogs.channel, text, ANY_VERSION if version is None else version]
        current = self.runner.run(level_script("set_limits"), self._table_keys, args)
        return StaleLimits(current[0].decode(errors="replace")) if current else None

    def purges(self) -> tuple[int, Sequence[tuple[str, int]]]:
        """See :class:`~bucketflow_celery.store.interfaces.Store`."""
        now, *marks = self.runner.run(level_script("purge_marks"), [self._purges], [])
        return now, [(name.decode(errors="replace"), int(at)) for name, at in zip(*[iter(marks)] * 2, strict=True)]

    def mark_purge(self, name: str) -> None:
        """See :class:`~bucketflow_celery.store.interfaces.Store`."""
        self.runner.run(level_script("mark_purge"), [*self._table_keys, self._purges], [self.backlogs.channel, name])

    def announce_worker(self, worker: str, digest: str, seconds: float) -> RedisStoreCall[Announced]:
        """See :class:`~bucketflow_celery.store.interfaces.Store`."""
        keys, args = [self._key("limits:tables")], [digest, worker, str(round(seconds * SECOND))]

        def read(reply: Any) -> Announced:
            return Announced(int(reply[0]), [other.decode() for other in reply[1:]])

        return RedisStoreCall(self.runner, level_script("announce_worker"), keys, args, read)

    def pause(self, name: str, *, paused: bool) -> None:
        """See :class:`~bucketflow_celery.store.interfaces.Store`."""
        args = [self.backlogs.channel, str(int(paused)), name]
        self.runner.run(level_script("pause"), self._table_keys, args)

    def check_access(self, *, parks: bool) -> None:
        """See :class:`~bucketflow_celery.store.interfaces.Store`."""
        check_access(self.runner, self._key("denied"), self.backlogs.channel, parks=parks)

    def after_fork(self) -> None:
        """See :class:`~bucketflow_celery.store.interfaces.Store`."""
        self.runner.after_fork()

    def close(self) -> None:
        """See :class:`~bucketflow_celery.store.interfaces.Store`."""
        self.runner.close()

    def _key(self, name: str) -> bytes:
        return (self._prefix + name).encode()


def _table(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:  # written by something else: the parser of the table reports what is wrong
        return raw


def _doubles(numbers: Sequence[float]) -> bytes:
    return struct.pack(f"<{len(numbers)}d", *numbers)


def _decisions(requests: Sequence[AdmissionRequest], numbers: Sequence[float]) -> list[AdmissionDecision]:
    decisions, at = [], 0
    for request in requests:
        status, binding, wait = numbers[at : at + 3]
        end = at + 3 + len(request.path)
        reservations = tuple(map(int, numbers[at + 3 : end]))
        decisions.append(AdmissionDecision(status == 1, None if binding < 0 else int(binding), int(wait), reservations))
        at = end
    return decisions
