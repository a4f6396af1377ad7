"""
The cost of parked tasks on the server: its time per call, and its memory per task.

There are no workers. The benchmark calls the operations as a worker does, and the server reports their time. Run it on
a quiet machine, from the root of the repository: ``python -m benchmarks.throttle.backlog [parked ...]``. A million
parked tasks take half a gigabyte.
"""

from __future__ import annotations

import hashlib
import random
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import count, islice

import redis
from rich.console import Console
from rich.table import Table

from benchmarks.server import redis_server
from bucketflow.redis_client.runner import ScriptRunner
from bucketflow_celery.config.levels import Level
from bucketflow_celery.config.limit import Limit
from bucketflow_celery.scheduling.model import (
    DispatchedTask,
    DispatchReply,
    DispatchRequest,
    Lane,
    ParkedMessage,
    Settlement,
    TaskSpec,
    TenantSpec,
    TenantSummary,
)
from bucketflow_celery.store.redis_store import RedisStore

SIZES = (1_000, 10_000, 100_000, 1_000_000)
TENANTS = 10_000
#: Bytes of a message.
MESSAGE = 300
#: Tasks per call while the backlog is filled, and free slots of the worker afterwards.
BATCH, FREE = 64, 4
#: Measured rounds for each size, after one that is not measured; and calls of each operation in a round.
ROUNDS, CALLS = 40, 50

QUEUE, TASK = "celery", "shop.tasks.send_mail"
AMPLE, EXHAUSTED = Limit(1e6, 1e6), Limit(1, 1e-3)


@dataclass(frozen=True)
class Cost:
    """
    One line of the report. Times are µs of the server per call, sizes are bytes per task.

    Attributes:
        parked: The number of parked tasks during the measurement.
        tenants: The number of their tenants.
        dispatch: To dispatch ``FREE`` tasks, each under limits of a queue, a tenant and a task type.
        refuse: To refuse a dispatch and return the wait, when the queue has no tokens.
        settle: To settle ``FREE`` tasks that have ended.
        park: To park ``FREE`` tasks.
        at_first: Size of a parked task beside its message, while its broker may redeliver it.
        later: Size of a parked task beside its message after that.
    """

    parked: int
    tenants: int
    dispatch: float
    refuse: float
    settle: float
    park: float
    at_first: float
    later: float


class Worker:
    """
    The backlog calls of one worker.

    Args:
        client: A client of the server.
        tenants: The number of tenants.
    """

    def __init__(self, client: redis.Redis, tenants: int) -> None:
        self._client = client
        self._backlogs = RedisStore(ScriptRunner(client, timeout=60), "bench").backlogs
        self._backlogs.renew("bench", 86_400).run()
        self._known: tuple[TenantSummary, ...] = ()
        self._messages = _messages(tenants)
        self._times: defaultdict[str, list[float]] = defaultdict(list)

    def fill(self, size: int) -> dict[str, float]:
        """Park *size* tasks; return the bytes per task beside its message, at first and later."""
        before, uids = self._memory(), []
        while batch := list(islice(self._messages, min(BATCH, size - len(uids)))):
            self._backlogs.park(QUEUE, batch, size, busy=False).run()
            uids += [message.uid for message in batch]
        at_first = self._memory()
        for at in range(0, size, 1000):
            self._backlogs.settle(QUEUE, Settlement("bench", confirmed=tuple(uids[at : at + 1000]))).run()
        return {"at_first": (at_first - before) / size - MESSAGE, "later": (self._memory() - before) / size - MESSAGE}

    def work(self, calls: int) -> None:
        """Dispatch, settle and park again, so that each tenant keeps its backlog; then request without tokens."""
        with self._timing("dispatch"):
            dispatched = [self._dispatch(AMPLE) for _ in range(calls)]
        uids = [tuple(one.owned.item.uid for one in tasks) for tasks in dispatched]
        with self._timing("settle"):
            for ended in uids:
                self._backlogs.settle(QUEUE, Settlement("bench", ended, ended)).run()
        again = [[replace(next(self._messages), lane=one.owned.lane) for one in tasks] for tasks in dispatched]
        with self._timing("park"):
            for messages in again:
                self._backlogs.park(QUEUE, messages, 10**9, busy=False).run()
        self._dispatch(EXHAUSTED)
        with self._timing("refuse"):
            for _ in range(calls):
                self._dispatch(EXHAUSTED)

    def times(self) -> dict[str, float]:
        """Return µs per call by operation: the lower quartile of all rounds but the first, for others are disturbed."""
        return {name: statistics.quantiles(times[1:], method="inclusive")[0] for name, times in self._times.items()}

    def _dispatch(self, limit: Limit) -> Sequence[DispatchedTask]:
        candidates = tuple(_tenant_spec(known) for known in self._known)
        request = DispatchRequest("bench", FREE, (Level("queue", "q:celery", limit),), candidates)
        reply = self._backlogs.dispatch(QUEUE, request, "").run()
        if not isinstance(reply, DispatchReply):
            raise TypeError(f"expected a DispatchReply, got {reply!r}")
        self._known = reply.next
        return reply.dispatched

    @contextmanager
    def _timing(self, name: str) -> Iterator[None]:
        """Record the time that the server counts for the calls of a block. Its slow log would slow the calls down."""
        self._client.config_resetstat()
        yield
        stats = self._client.info("commandstats")
        calls = [figures for command, figures in stats.items() if command in ("cmdstat_eval", "cmdstat_evalsha")]
        self._times[name].append(sum(one["usec"] for one in calls) / sum(one["calls"] for one in calls))

    def _memory(self) -> int:
        return int(self._client.info("memory")["used_memory"])


def _messages(tenants: int) -> Iterator[ParkedMessage]:
    """Yield messages without end: first one of each tenant, then of random tenants."""
    chance = random.Random(tenants)
    for number in count():
        tenant = number if number < tenants else chance.randrange(tenants)
        uid = hashlib.blake2b(str(number).encode(), digest_size=14).digest()
        yield ParkedMessage(uid, Lane(f"tenant {tenant}", TASK), bytes(MESSAGE))


def _tenant_spec(known: TenantSummary) -> TenantSpec:
    parent = f"q:celery/t:{known.tenant}"
    types = tuple(TaskSpec(task, ranks, Level("task", f"{parent}/f:{task}", AMPLE)) for task, ranks in known.types)
    return TenantSpec(known.tenant, types, 1.0, Level("tenant", parent, AMPLE))


def measure(sizes: Sequence[int], rounds: int = ROUNDS, calls: int = CALLS) -> list[Cost]:
    """
    Measure each of *sizes* on a server of its own, alternately, so that a disturbance affects all of them.

    Args:
        sizes: Numbers of parked tasks, each >= 1.
        rounds: Measured rounds, >= 2.
        calls: Calls of each operation in a round.
    """
    with ExitStack() as servers:
        workers, memory = [], []
        for size in sizes:
            client = servers.enter_context(redis.Redis(port=servers.enter_context(redis_server())))
            workers.append(Worker(client, min(TENANTS, size)))
            memory.append(workers[-1].fill(size))
        for worker in workers * (1 + rounds):
            worker.work(calls)
        return [
            Cost(size, min(TENANTS, size), **used, **worker.times())
            for size, used, worker in zip(sizes, memory, workers, strict=True)
        ]


def report(costs: list[Cost]) -> int:
    """Print the table; return 1 if dispatch time grows with the number of parked tasks, or a task takes too much."""
    table = Table("parked", "tenants", f"dispatch {FREE}, µs", "refuse, µs", f"settle {FREE}, µs", f"park {FREE}, µs")
    table.title = "Redis' own time per call, and its memory per task"
    table.add_column("bytes a task beside its message")
    for cost in costs:
        times = (cost.dispatch, cost.refuse, cost.settle, cost.park)
        table.add_row(
            f"{cost.parked:,}",
            f"{cost.tenants:,}",
            *(f"{time:.1f}" for time in times),
            f"{cost.later:.0f} ({cost.at_first:.0f} at first)",
        )
    Console(width=140).print(table)
    growth = costs[-1].dispatch / costs[0].dispatch
    print(
        f"a dispatch with {costs[-1].parked:,} parked takes {growth:.2f} times that with {costs[0].parked:,} (<= 1.5)"
    )
    return int(growth > 1.5 or costs[-1].later > 200)


if __name__ == "__main__":
    sys.exit(report(measure([int(size) for size in sys.argv[1:]] or SIZES)))
