"""
What parking does under load: fair shares, nothing lost, and a cost that does not grow with what is parked.

Two prefork workers of four on one Redis. Run it on a quiet machine: ``python benchmarks/fairness.py [row ...]``.
With ``BENCH_LOG=file`` the workers' warnings and errors are kept.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

import redis
from celery import Celery
from measuring import Row, Run, limit, report, utilisation, worst_excess
from workers import Fleet, wait_until

from bucketflow_celery import Throttle
from bucketflow_celery.config.levels import Level
from bucketflow_celery.config.limit import Limit
from bucketflow_celery.scheduling.model import DispatchReply, DispatchRequest, LeasedTask, Settlement, TenantSummary

LOG = Path(os.environ["BENCH_LOG"]).resolve() if "BENCH_LOG" in os.environ else None
QUEUE = "celery"


@contextmanager
def parking(port: int, limits: Mapping[str, Any], **options: Any) -> Iterator[tuple[Run, Throttle]]:  # noqa: ANN401
    """Start workers that park; yield their run, and a throttle of the same limits that is nobody's but ours."""
    fleet = Fleet(port, "park", limits, log=LOG, **options)
    run = Run(fleet)
    ours = Throttle(
        Celery("ours"), url=f"redis://127.0.0.1:{port}/1", limits=limits, on_limit="park", tenant="tenant", timeout=10
    )
    fleet.start()
    try:
        yield run, ours
    finally:
        ours.close()
        fleet.stop()


def parked(ours: Throttle) -> int:
    """Return how many tasks are parked."""
    backlog = ours.backlog().get(QUEUE)
    return 0 if backlog is None else backlog.count


@contextmanager
def held_back(ours: Throttle) -> Iterator[None]:
    """Let nothing start meanwhile."""
    ours.pause(queue=QUEUE)
    yield
    ours.resume(queue=QUEUE)


def wait_parked(ours: Throttle, count: int, timeout: float) -> None:
    """Wait until *count* tasks are parked."""
    if not wait_until(lambda: parked(ours) >= count, timeout, every=0.2):
        raise RuntimeError(f"{parked(ours)} of {count} tasks are parked")


def jain(shares: Sequence[float]) -> float:
    """Return Jain's index of fairness: 1 if all are the same, 1/n if one has everything."""
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))


@dataclass(frozen=True)
class Books:
    """What every workload must show beside its own figure."""

    shown: str
    ok: bool

    wanted = "utilisation >= 0.99, worst window <= +1, 1 delivery and 1 hand-over a task"

    @classmethod
    def of(cls, run: Run, count: int, capacity: float, fill_rate: float) -> Books:
        """Balance what the tasks, the workers and their throttles have counted."""
        starts, deliveries = run.starts(), run.deliveries()
        counters = run.counters()
        handed, parked = counters["dispatched"], counters["parked"]
        direct = counters["admitted"] - handed
        used, excess = utilisation(starts, capacity, fill_rate), worst_excess(starts, capacity, fill_rate)
        return cls(
            f"utilisation {used:.4f}, worst window {excess:+.2f}; {len(starts)} starts of {count}, "
            f"{deliveries} deliveries, {parked} parked, {handed} handed over + {direct} started at once",
            used >= 0.99
            and excess <= 1
            and len(starts) == count == deliveries == handed + direct
            and handed == parked
            and counters["store_errors"] == 0,
        )


def newcomer(port: int) -> Row:
    """Let B come when A has a long backlog; with ``self.retry(countdown=wait)`` beside it."""
    capacity, fill_rate = 10.0, 50.0
    allowed = limit(capacity, fill_rate)

    def serve(run: Run, task: str) -> float:
        begin = time.time()
        run.send(1000, "A", task)
        time.sleep(max(0.0, begin + 4 - time.time()))
        came = time.time()
        run.send(50, "B", task)
        wait_until(lambda: len(run.starts("B")) >= 50, 60)
        served = run.starts("B")
        return served[-1] - came if len(served) == 50 else float("inf")

    with parking(port, {"queues": {QUEUE: allowed}}) as (run, _):
        took = serve(run, "work")
        run.wait_for_starts(1050, 60)
        books = Books.of(run, 1050, capacity, fill_rate)
    fleet = Fleet(port, "plain retry", allowed)
    run = Run(fleet)
    fleet.start()
    try:
        plain = serve(run, "retrying")
    finally:
        fleet.kill()
    return Row(
        "1000 tasks of A at 50/s, capacity 10; after 4 s 50 tasks of B",
        f"B done in {took:.2f} s (plain self.retry: {plain:.1f} s); {books.shown}",
        f"B done in <= 2.5 s; {books.wanted}",
        took <= 2.5 and books.ok,
    )


def shares(port: int, backlogs: Mapping[str, int], weights: Mapping[str, float], fill_rate: float) -> Shares:
    """Let all *backlogs* begin at once, and see how they were served."""
    capacity, count = 10.0, sum(backlogs.values())
    with parking(port, {"queues": {QUEUE: limit(capacity, fill_rate)}, "weights": weights}) as (run, ours):
        with held_back(ours):
            for tenant, tasks in backlogs.items():
                run.send_many(tasks, [tenant])
            wait_parked(ours, count, 60)
        run.wait_for_starts(count, 2 * count / fill_rate)
        books = Books.of(run, count, capacity, fill_rate)
        return Shares({tenant: run.starts(tenant) for tenant in backlogs}, weights, books)


@dataclass(frozen=True)
class Shares:
    """
    How tenants were served that all began at once.

    Attributes:
        starts: Of each tenant, sorted.
        weights: Of those whose weight is not 1.
        books: The rest.
    """

    starts: Mapping[str, Sequence[float]]
    weights: Mapping[str, float]
    books: Books

    def dries(self) -> list[float]:
        """Return when each tenant ran dry, the first one first."""
        return sorted(starts[-1] for starts in self.starts.values())

    def service(self, after: float, until: float) -> dict[str, float]:
        """Return how many tasks of each tenant started for its weight, of those who were backlogged all the time."""
        return {
            tenant: sum(after < at <= until for at in starts) / self.weights.get(tenant, 1)
            for tenant, starts in self.starts.items()
            if starts[-1] >= until
        }


def tenants(port: int) -> Row:
    """Serve ten tenants, the largest with a hundred times the work of the smallest."""
    sizes = [10, 20, 40, 70, 120, 200, 320, 500, 700, 1000]
    served = shares(port, {f"t{size}": size for size in sizes}, {}, 100.0)
    dries = served.dries()
    index = jain([*served.service(0, dries[0]).values()])
    later = min(jain([*served.service(after, until).values()]) for after, until in pairwise(dries[:-1]))
    return Row(
        f"10 tenants, backlogs from 10 to 1000, equal weights, {sum(sizes)} tasks at 100/s",
        f"Jain's index {index:.4f} until the first ran dry, >= {later:.4f} from each to the next; {served.books.shown}",
        f">= 0.99; {served.books.wanted}",
        min(index, later) >= 0.99 and served.books.ok,
    )


def weights(port: int) -> Row:
    """Serve three tenants of different weight."""
    given = {"a": 5.0, "b": 3.0, "c": 1.0}
    served = shares(port, {"a": 1200, "b": 900, "c": 400}, given, 100.0)
    service = served.service(0, served.dries()[0])
    ideal = mean(service.values())
    worst = max(abs(one / ideal - 1) for one in service.values())
    counts = " : ".join(f"{service[tenant] * weight:.0f}" for tenant, weight in given.items())
    return Row(
        "weights 5 : 3 : 1, 2500 tasks at 100/s",
        f"{counts} until the first ran dry, {worst:.2%} off at most; {served.books.shown}",
        f"within 3 %; {served.books.wanted}",
        worst <= 0.03 and served.books.ok,
    )


class Hand:
    """
    Takes tasks from the backlog as a worker with one free slot does, and puts them back.

    Args:
        port: The Redis server's.
    """

    #: A bucket that is never dry, in the place of the queue's.
    _LEVELS = (Level("queue", "q:hand", Limit(1e5, 1e5)),)

    def __init__(self, port: int) -> None:
        app = Celery("hand")

        @app.task(name="tasks.work", shared=False)
        def work(tenant: str) -> None:  # what one does not know is not handed out to one
            del tenant

        self._client = redis.Redis(port=port, db=1)
        self._throttle = Throttle(app, client=self._client, timeout=10)
        self._backlogs = self._throttle.store.backlogs
        self._known: tuple[TenantSummary, ...] = ()

    def cost(self, count: int) -> float:
        """Return the server's µs for handing out one task, in the median of five times *count*."""
        self._backlogs.renew("hand", 60).run()
        self._give_back(self._release())  # it has learned whom to ask for
        cost = median(self._cost(count) for _ in range(5))
        self._backlogs.renew("hand", 0).run()
        return cost

    def _cost(self, count: int) -> float:
        before = self._spent()
        handed = [owned for _ in range(count) for owned in self._release()]
        calls, spent = (after - earlier for after, earlier in zip(self._spent(), before, strict=True))
        self._give_back(handed)
        if len(handed) != count:
            raise RuntimeError(f"{len(handed)} of {count} tasks were handed out")
        return spent / calls

    def _release(self) -> list[LeasedTask]:
        book = self._throttle.active_limits
        candidates = tuple(book.tenant_spec(QUEUE, known) for known in self._known)
        request = DispatchRequest("hand", 1, self._LEVELS, candidates)
        _, released = self._backlogs.dispatch(QUEUE, request, book.version).run()
        if not isinstance(released, DispatchReply):
            raise TypeError(f"no tasks, but {released!r}")
        self._known = released.next
        return [one.owned for one in released.dispatched]

    def _give_back(self, handed: Sequence[LeasedTask]) -> None:
        back = tuple((owned.item.uid, owned.lane, False) for owned in handed)
        self._backlogs.settle(QUEUE, Settlement("hand", returned=back)).run()

    def _spent(self) -> tuple[int, int]:
        spent = self._client.info("commandstats")["cmdstat_evalsha"]
        return spent["calls"], spent["usec"]


def many(port: int) -> Row:
    """Park a hundred thousand tasks."""
    names = [f"t{number}" for number in range(10)]
    with parking(port, {"queues": {QUEUE: {"rate": "1/h", "capacity": 1}}}, count=False) as (run, ours):
        hand = Hand(port)
        sent, memory, cost, took = 0, {}, {}, 0.0
        for most in (1_001, 5_001, 100_001):
            begin = time.monotonic()
            run.send_many(most - sent, names)
            wait_parked(ours, most - 1, 300)
            sent, took = most, time.monotonic() - begin
            time.sleep(1)
            memory[most] = run.fleet.memory()
            if most != 5_001:
                cost[most] = hand.cost(150)
        counters = run.counters()
        used = redis.Redis(port=port).info("memory")["used_memory"] / 1e6
    growth = [late / early - 1 for early, late in zip(memory[5_001], memory[100_001], strict=True)]
    sizes = " and ".join(f"{size:.1f} MB ({by:+.1%})" for size, by in zip(memory[100_001], growth, strict=True))
    dearer = cost[100_001] / cost[1_001]
    return Row(
        "100 000 parked tasks of 10 tenants",
        f"worker memory {sizes} "
        f"since 5 000; {cost[100_001]:.0f} µs a release against {cost[1_001]:.0f} at 1 000: {dearer:.2f} times; "
        f"{counters['parked']} parked, the last 95 000 in {took:.0f} s, Redis {used:.0f} MB",
        "±5 %, <= 1.5 times, each parked once",
        max(map(abs, growth)) <= 0.05 and dearer <= 1.5 and counters["parked"] == sent - 1,
    )


@dataclass(frozen=True, order=True)
class Event:
    """A worker started or ended a task, or was killed."""

    at: float
    worker: str


def events(run: Run, name: str) -> dict[str, list[Event]]:
    """Return what the tasks recorded under *name*, by task id and in order."""
    found = defaultdict(list)
    for record in run.records.lrange(name, 0, -1):
        task_id, worker, at = record.split()
        found[task_id].append(Event(float(at), worker))
    return {task_id: sorted(happened) for task_id, happened in found.items()}


@dataclass(frozen=True)
class Again:
    """
    A start of a task that had started before.

    Attributes:
        start: This one.
        had_ended: Whether the task had ended by then.
        kill: The one that hit its worker before it could tell of the end, if any did.
    """

    start: Event
    had_ended: bool
    kill: Event | None

    @classmethod
    def of(cls, before: Event, start: Event, ends: Sequence[Event], kills: Sequence[Event]) -> Again:
        """Tell why a task that had started *before* has started again."""
        ended = [end.at for end in ends if end.worker == before.worker and before.at <= end.at <= start.at]
        until = ended[0] + 0.2 if ended else start.at
        hits = [kill for kill in kills if kill.worker == before.worker and before.at <= kill.at <= until]
        return cls(start, bool(ended), hits[0] if hits else None)


def killed(port: int, *, acks_late: bool) -> Row:
    """Kill one of two workers in mid-backlog, twenty times."""
    capacity, fill_rate, lease = 10.0, 50.0, 2.0
    limits = {"queues": {QUEUE: limit(capacity, fill_rate)}}
    chance, sent, left = random.Random(3), [], []
    kills: list[Event] = []
    with parking(port, limits, visibility=3, lease=lease, acks_late=acks_late) as (run, ours):
        for turn in range(20):
            sent += run.send(100, "acme", "traced", args=(0.08,))
            time.sleep(chance.uniform(0.0, 0.8))
            left.append(parked(ours))
            run.fleet.kill_one(turn % 2)
            kills.append(Event(time.time(), f"w{turn % 2}@bench"))
            run.fleet.restart(turn % 2)
        wait_until(lambda: parked(ours) == 0, 60, every=0.2)
        wait_until(lambda: len(events(run, "runs")) >= len(sent), 15)
        time.sleep(2 * lease + 3)  # whatever may still come twice
        starts, ends, received = events(run, "runs"), events(run, "ends"), run.records.lrange("deliveries", 0, -1)
        broker = redis.Redis(port=port, db=0)
        waiting = broker.llen(QUEUE) + broker.hlen("unacked") + parked(ours)
    never = {task_id for task_id in sent if task_id not in starts}
    lost = never & set(received)
    unfinished = [task_id for task_id in starts if task_id not in ends]
    again = [
        Again.of(one, two, ends.get(task_id, ()), kills)
        for task_id, made in starts.items()
        for one, two in pairwise(made)
    ]
    strange, ended = sum(one.kill is None for one in again), sum(one.had_ended for one in again)
    wait = max((one.start.at - one.kill.at for one in again if one.kill is not None), default=0.0)
    excess = worst_excess(sorted(start.at for made in starts.values() for start in made), capacity, fill_rate)
    return Row(
        f"one of two workers killed in mid-backlog 20 times, acks_late={acks_late}",
        f"{len(sent)} tasks, {min(left)} to {max(left)} parked at a kill; {len(lost)} lost, {waiting} left over, "
        f"{len(never - lost)} popped by kombu and never received; {len(unfinished)} cut off and not started again; "
        f"{len(again)} started again after {wait:.2f} s at most ({ended} of them had just ended), "
        f"{strange} of them without a kill; {len(received)} deliveries, worst window {excess:+.2f}",
        "nothing lost; duplicates only of tasks that had started"
        + ("" if acks_late else "; what was acknowledged and cut off does not come again, as with the broker"),
        not lost and not waiting and not strange and not (acks_late and unfinished) and excess <= 1 and min(left) > 0,
    )


ROWS = {
    "newcomer": newcomer,
    "tenants": tenants,
    "weights": weights,
    "many": many,
    "killed-late": lambda port: killed(port, acks_late=True),
    "killed-early": lambda port: killed(port, acks_late=False),
}

if __name__ == "__main__":
    sys.exit(report(ROWS, sys.argv[1:]))
