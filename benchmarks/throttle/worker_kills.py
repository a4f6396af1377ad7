"""The benchmark of killed workers: no parked task is lost, and only a task that had started runs again."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import redis

from benchmarks.throttle.measuring import Row, Run, limit, worst_excess
from benchmarks.throttle.parking import QUEUE, parked, parking
from bucketflow_celery.demo.processes import wait_until

#: Capacity and fill rate of the queue; seconds until the lease of a killed worker expires.
CAPACITY, FILL_RATE, LEASE = 10.0, 50.0, 2.0
KILLS = 20

#: Seconds by which a worker may report the end of a task late.
REPORT_DELAY = 0.2


@dataclass(frozen=True, order=True)
class Event:
    """The start or the end of a task in a worker, or the kill of a worker; *at* in seconds since the Unix epoch."""

    at: float
    worker: str


@dataclass(frozen=True)
class Restart:
    """
    A start of a task that had started before.

    Attributes:
        start: The start.
        had_ended: Whether the earlier run had ended.
        kill: The kill of the earlier run's worker before it could report the end; ``None`` if there was none.
    """

    start: Event
    had_ended: bool
    kill: Event | None

    @classmethod
    def of(cls, before: Event, start: Event, ends: Sequence[Event], kills: Sequence[Event]) -> Restart:
        """Return why a task that had started *before* has started again."""
        ended = [end.at for end in ends if end.worker == before.worker and before.at <= end.at <= start.at]
        until = ended[0] + REPORT_DELAY if ended else start.at
        hits = [kill for kill in kills if kill.worker == before.worker and before.at <= kill.at <= until]
        return cls(start, bool(ended), hits[0] if hits else None)


@dataclass(frozen=True)
class Records:
    """
    What the tasks and the broker recorded.

    Attributes:
        starts: The starts of each task, by task id; sorted.
        ends: The ends of each task, by task id; sorted.
        received: The task ids of all deliveries.
        left_over: Messages that are still in the broker or parked.
    """

    starts: Mapping[str, Sequence[Event]]
    ends: Mapping[str, Sequence[Event]]
    received: Sequence[str]
    left_over: int

    def restarts(self, kills: Sequence[Event]) -> list[Restart]:
        """Return all starts of tasks that had started before."""
        return [
            Restart.of(one, two, self.ends.get(task_id, ()), kills)
            for task_id, made in self.starts.items()
            for one, two in pairwise(made)
        ]


def events(run: Run, name: str) -> dict[str, list[Event]]:
    """Return the events that the tasks recorded under *name*, by task id; sorted."""
    found = defaultdict(list)
    for record in run.records.lrange(name, 0, -1):
        task_id, worker, at = record.split()
        found[task_id].append(Event(float(at), worker))
    return {task_id: sorted(recorded) for task_id, recorded in found.items()}


def worker_kills(port: int, *, acks_late: bool) -> Row:
    """Kill one of two workers in mid-backlog, twenty times."""
    limits = {"queues": {QUEUE: limit(CAPACITY, FILL_RATE)}}
    chance, sent, backlogs = random.Random(3), [], []
    kills: list[Event] = []
    with parking(port, limits, visibility=3, lease=LEASE, acks_late=acks_late) as (run, ours):
        for number in range(KILLS):
            sent += run.send(100, "acme", "traced", args=(0.08,))
            time.sleep(chance.uniform(0.0, 0.8))
            backlogs.append(parked(ours))
            run.fleet.kill_one(number % 2)
            kills.append(Event(time.time(), f"w{number % 2}@bench"))
            run.fleet.restart(number % 2)
        wait_until(lambda: parked(ours) == 0, 60, pause=0.2)
        wait_until(lambda: len(events(run, "runs")) >= len(sent), 15)
        time.sleep(2 * LEASE + 3)  # for duplicates that are still to come
        broker = redis.Redis(port=port, db=0)
        left_over = broker.llen(QUEUE) + broker.hlen("unacked") + parked(ours)
        received = run.records.lrange("deliveries", 0, -1)
        records = Records(events(run, "runs"), events(run, "ends"), received, left_over)
    return _row(sent, backlogs, kills, records, acks_late=acks_late)


def _row(
    sent: Sequence[str], backlogs: Sequence[int], kills: Sequence[Event], records: Records, *, acks_late: bool
) -> Row:
    never = {task_id for task_id in sent if task_id not in records.starts}
    lost = never & set(records.received)
    unfinished = [task_id for task_id in records.starts if task_id not in records.ends]
    restarts = records.restarts(kills)
    unexplained, ended = sum(one.kill is None for one in restarts), sum(one.had_ended for one in restarts)
    wait = max((one.start.at - one.kill.at for one in restarts if one.kill is not None), default=0.0)
    starts = sorted(start.at for made in records.starts.values() for start in made)
    excess = worst_excess(starts, CAPACITY, FILL_RATE)
    return Row(
        f"one of two workers killed in mid-backlog {KILLS} times, acks_late={acks_late}",
        f"{len(sent)} tasks, {min(backlogs)} to {max(backlogs)} parked at a kill; {len(lost)} lost, "
        f"{records.left_over} left over, "
        f"{len(never - lost)} popped by kombu and never received; {len(unfinished)} cut off and not started again; "
        f"{len(restarts)} started again after {wait:.2f} s at most ({ended} of them had just ended), "
        f"{unexplained} of them without a kill; {len(records.received)} deliveries, worst window {excess:+.2f}",
        "nothing lost; duplicates only of tasks that had started"
        + ("" if acks_late else "; a task that was acknowledged and cut off is lost, as with the broker"),
        not lost
        and not records.left_over
        and not unexplained
        and not (acks_late and unfinished)
        and excess <= 1
        and min(backlogs) > 0,
    )
