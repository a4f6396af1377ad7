"""
What parked tasks cost the server: its time for one call, and its memory for one task.

No workers: the operations are called as a worker calls them, and the server tells how long they took.
Run it on a quiet machine: ``python benchmarks/backlog.py [parked ...]``; a million take half a gigabyte.
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
from workers import redis_server

from bucketflow.redis_client.runner import ScriptRunner
from bucketflow_celery.config.levels import Level
from bucketflow_celery.config.limit import Limit
from bucketflow_celery.scheduling.model import (
    DispatchedTask,
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
#: Tasks parked in one call at first, and slots that a worker has free.
BATCH, FREE = 64, 4
#: Turns of each size, after one that is not measured; and calls in each.
POLLS, ROUNDS = 40, 50

QUEUE, TASK = "celery", "shop.tasks.send_mail"
PLENTY, HARDLY = Limit(1e6, 1e6), Limit(1, 1e-3)


@dataclass(frozen=True)
class Cost:
    """
    One line of the report: µs of the server's time for one call, bytes for one task.

    Attributes:
        parked: How many tasks are parked, all the time.
        tenants: Of how many tenants.
        dispatch: To hand out ``FREE`` tasks, each past the limits of a queue, a tenant and a task type.
        refuse: To say when to come again, when the queue has no tokens.
        settle: To forget ``FREE`` tasks that have ended.
        park: To park ``FREE`` tasks.
        at_first: What a parked task takes beside its message, while its broker may still deliver it again.
        later: What it takes after that.
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
    One worker's side of the protocol.

    Args:
        client: Of the server.
        tenants: How many there are.
    """

    def __init__(self, client: redis.Redis, tenants: int) -> None:
        self._client = client
        self._backlogs = RedisStore(ScriptRunner(client, timeout=60), "bench").backlogs
        self._backlogs.renew("bench", 86_400).run()
        self._known: tuple[TenantSummary, ...] = ()
        self._parcels = _parcels(tenants)
        self._spent: defaultdict[str, list[float]] = defaultdict(list)

    def fill(self, size: int) -> dict[str, float]:
        """Park *size* tasks; return the bytes each takes beside its message at first, and later."""
        before, uids = self._memory(), []
        while batch := list(islice(self._parcels, min(BATCH, size - len(uids)))):
            self._backlogs.park(QUEUE, batch, size, busy=False).run()
            uids += [parcel.uid for parcel in batch]
        at_first = self._memory()
        for at in range(0, size, 1000):
            self._backlogs.settle(QUEUE, Settlement("bench", confirmed=tuple(uids[at : at + 1000]))).run()
        return {"at_first": (at_first - before) / size - MESSAGE, "later": (self._memory() - before) / size - MESSAGE}

    def work(self) -> None:
        """Hand out, end and park again, so that each tenant keeps what it has; then ask where there are no tokens."""
        with self._timing("release"):
            handed = [self._ask(PLENTY) for _ in range(ROUNDS)]
        uids = [tuple(one.owned.item.uid for one in some) for some in handed]
        with self._timing("settle"):
            for some in uids:
                self._backlogs.settle(QUEUE, Settlement("bench", some, some)).run()
        again = [[replace(next(self._parcels), lane=one.owned.lane) for one in some] for some in handed]
        with self._timing("park"):
            for parcels in again:
                self._backlogs.park(QUEUE, parcels, 10**9, busy=False).run()
        self._ask(HARDLY)
        with self._timing("refuse"):
            for _ in range(ROUNDS):
                self._ask(HARDLY)

    def times(self) -> dict[str, float]:
        """Return the µs of each call in all turns but the first: the lower quartile, for others disturb the rest."""
        return {name: statistics.quantiles(spent[1:])[0] for name, spent in self._spent.items()}

    def _ask(self, limit: Limit) -> Sequence[DispatchedTask]:
        candidates = tuple(_candidate(known) for known in self._known)
        request = DispatchRequest("bench", FREE, (Level("queue", "q:celery", limit),), candidates)
        _, released = self._backlogs.dispatch(QUEUE, request, "").run()
        self._known = released.next
        return released.dispatched

    @contextmanager
    def _timing(self, name: str) -> Iterator[None]:
        """Take down what the server says that the calls of a block took. Its slow log would take as long as they."""
        self._client.config_resetstat()
        yield
        stats = self._client.info("commandstats")
        calls = [figures for command, figures in stats.items() if command in ("cmdstat_eval", "cmdstat_evalsha")]
        self._spent[name].append(sum(one["usec"] for one in calls) / sum(one["calls"] for one in calls))

    def _memory(self) -> int:
        return int(self._client.info("memory")["used_memory"])


def _parcels(tenants: int) -> Iterator[ParkedMessage]:
    """Yield tasks for ever: first one of each tenant, then of any."""
    chance = random.Random(tenants)
    for number in count():
        tenant = number if number < tenants else chance.randrange(tenants)
        uid = hashlib.blake2b(str(number).encode(), digest_size=14).digest()
        yield ParkedMessage(uid, Lane(f"tenant {tenant}", TASK), bytes(MESSAGE))


def _candidate(known: TenantSummary) -> TenantSpec:
    parent = f"q:celery/t:{known.tenant}"
    types = tuple(TaskSpec(task, ranks, Level("task", f"{parent}/f:{task}", PLENTY)) for task, ranks in known.types)
    return TenantSpec(known.tenant, types, 1.0, Level("tenant", parent, PLENTY))


def measure(sizes: Sequence[int]) -> list[Cost]:
    """Measure with so many tasks parked, each on a server of their own, in turns: so all have the same disturbance."""
    with ExitStack() as servers:
        workers, memory = [], []
        for size in sizes:
            client = servers.enter_context(redis.Redis(port=servers.enter_context(redis_server())))
            workers.append(Worker(client, min(TENANTS, size)))
            memory.append(workers[-1].fill(size))
        for worker in workers * (1 + POLLS):
            worker.work()
        return [
            Cost(size, min(TENANTS, size), **taken, **worker.times())
            for size, taken, worker in zip(sizes, memory, workers, strict=True)
        ]


def report(costs: list[Cost]) -> int:
    """Print the table; return 1 if a release takes longer the more are parked, or these take too much memory."""
    table = Table("parked", "tenants", f"release {FREE}, µs", "refuse, µs", f"settle {FREE}, µs", f"park {FREE}, µs")
    table.title = "Redis' own time for a call, and its memory for a task"
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
    print(f"a release with {costs[-1].parked:,} parked takes {growth:.2f} times that with {costs[0].parked:,} (<= 1.5)")
    return int(growth > 1.5 or costs[-1].later > 200)


if __name__ == "__main__":
    sys.exit(report(measure([int(size) for size in sys.argv[1:]] or SIZES)))
