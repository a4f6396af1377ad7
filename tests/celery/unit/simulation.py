"""
A fleet in one thread: real gates, a real (in-memory) store, and a pool, a broker and a clock that a test controls.

Events happen in the order of a fake clock, so the same workload always plays the same way, and an hour of it takes a
moment. The broker is as unkind as brokers are: what comes back is late by up to ``lateness``, goes to any worker, and
carries its ticket as JSON.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
from collections import Counter, deque
from dataclasses import dataclass, field

from bucketflow.errors import StoreUnavailable
from bucketflow.limit import SECOND
from bucketflow.testing import FakeClock
from bucketflow_celery.gate import Gate, Patience
from bucketflow_celery.limits import LimitTable, check_cost
from bucketflow_celery.lines import Passage
from bucketflow_celery.outage import Outage
from bucketflow_celery.stats import Stats
from bucketflow_celery.testing import MemoryStore
from bucketflow_celery.ticket import Ticket

START = 1000.0
EPOCH = 1_700_000_000.0


@dataclass(eq=False)
class Job:
    """One task, as sent; and what became of it."""

    at: float = 0.0
    queue: str = "q"
    tenant: str | None = None
    name: str = "f"
    cost: float = 1.0
    duration: float = 0.0
    max_wait: float | None = None
    on_limit: str = "retry"
    revoked_at: float | None = None
    starts: list[float] = field(default_factory=list)
    path: tuple = ()
    errors: list[Exception] = field(default_factory=list)
    gone: int = 0
    deliveries: int = 0
    returns: int = 0

    @property
    def outcomes(self):
        return len(self.starts) + len(self.errors) + self.gone


@dataclass(eq=False)
class Request:
    """One delivery."""

    job: Job
    ticket: Ticket
    settled: bool = False  # acknowledged or rejected


class Fleet:
    """
    Workers, their broker and their store.

    Args:
        limits: The table of limits, as a user writes it.
        workers: How many.
        slots: Of each worker.
        lateness: A function of the number of the return: seconds by which it comes late.
        store_down, broker_down: Intervals, in seconds from the start, in which the store or the publishing fails.
        lost_replies: Whether a failing store has done what it was asked before it fails.
        latency: Seconds that an answer of the store takes to come back; 0: it is there at once.
    """

    def __init__(  # noqa: PLR0913
        self,
        limits,
        *,
        workers=1,
        slots=4,
        prefetch=16,
        on_store_error="hold",
        max_hold=600.0,
        max_countdown=900.0,
        lateness=lambda _number: 0.0,
        store_down=(),
        broker_down=(),
        lost_replies=False,
        latency=0.0,
    ):
        self.clock = FakeClock(START)
        self.store = MemoryStore(self.clock)
        self.configured = limits
        self.lateness, self.lost_replies = lateness, lost_replies
        self.store_down, self.broker_down = store_down, broker_down
        self.latency = latency
        self.jobs = []
        self.queues = {}
        self.events = []
        self.order = itertools.count()
        self.number_of_returns = itertools.count()
        self.options = {"on_store_error": on_store_error, "max_hold": max_hold, "max_countdown": max_countdown}
        self.workers = [Worker(self, slots, prefetch) for _ in range(workers)]

    # Time

    @property
    def now(self):
        """Seconds since the start."""
        return self.clock.now() / SECOND - START

    def at(self, seconds, callback):
        """Call *callback* at *seconds* from the start; never early, as timers are."""
        at = max(self.clock.now(), math.ceil(round((seconds + START) * SECOND, 3)))
        heapq.heappush(self.events, (at, next(self.order), callback))

    def after(self, seconds, callback):
        at = self.clock.now() + math.ceil(round(seconds * SECOND, 3))
        heapq.heappush(self.events, (at, next(self.order), callback))

    def run(self, until=math.inf, most=200_000):
        """Play all events up to *until*; return how many there were."""
        played = 0
        while self.events and (self.events[0][0] / SECOND - START) <= until:
            at, _, callback = heapq.heappop(self.events)
            self.clock._now = at
            callback()
            played += 1
            assert played < most, f"busy for ever at {self.now:.6f} s"
        if until < math.inf:
            self.clock._now = max(self.clock._now, round((until + START) * SECOND))
        return played

    @staticmethod
    def _within(intervals, now):
        return any(start <= now < end for start, end in intervals)

    def restart(self, worker, at, away):
        """Shut *worker* down softly at *at*, and have it back *away* seconds later."""

        def back():
            if worker.gate is None:
                worker.open()
                self.deliver()

        self.at(at, lambda: worker.gate and worker.close())
        self.at(at + away, back)

    # The broker

    def send(self, job):
        self.jobs.append(job)
        self.at(job.at, lambda: self.publish(Request(job, Ticket())))
        return job

    def publish(self, request):
        self.queues.setdefault(request.job.queue, deque()).append(request)
        self.deliver()

    def deliver(self):
        """Hand out what waits in the queues, in turn, to whoever has room."""
        found = True
        while found:
            found = False
            for queue in self.queues.values():
                for worker in sorted(self.workers, key=lambda worker: worker.unacknowledged - len(worker.widened)):
                    if queue and worker.has_room():
                        worker.receive(queue.popleft())
                        found = True
                        break

    def publish_later(self, job, countdown, ticket):
        if self._within(self.broker_down, self.now):
            return False
        request = Request(job, Ticket.read(json.loads(json.dumps(ticket.write()))))
        number = next(self.number_of_returns)
        self.after(countdown + self.lateness(number), lambda: self.come_back(request, number))
        return True

    def come_back(self, request, number):
        alive = [worker for worker in self.workers if worker.gate is not None]
        if alive:
            alive[number % len(alive)].receive(request)
        else:
            self.publish(request)

    # The store

    def ask(self, worker, asks, done):
        """Do as the askers of a worker do: answer at once, or later."""
        worker.calls.append(self.now)
        outcome = self._outcome(worker, asks)
        if self.latency:
            self.after(self.latency, lambda: done(outcome))
        else:
            done(outcome)

    def _outcome(self, worker, asks):
        if self._within(self.store_down, self.now):
            if self.lost_replies:
                self.store.admit(asks, worker.version)
            return StoreUnavailable("memory", "down")
        version, answers = self.store.admit(asks, worker.version)
        if answers is None and version != worker.version:
            worker.version, raw, _ = self.store.limits()
            worker.table = self.table(raw)
        return answers

    def table(self, raw=None):
        mistakes = []
        table = LimitTable.parse(self.configured if raw is None else raw, mistakes)
        assert not mistakes, mistakes
        return table

    # What it came to

    def calls(self):
        """Return how many round trips all workers made."""
        return sum(len(worker.calls) for worker in self.workers)

    def starts(self):
        """Return (seconds, job) of every start, in the order of time."""
        return sorted(((at, job) for job in self.jobs for at in job.starts), key=lambda start: start[0])

    def starts_by_bucket(self):
        """Return the level and the (seconds, cost) of its starts, by key."""
        buckets = {}
        for at, job in self.starts():
            for level in job.path:
                buckets.setdefault(level.key, (level, []))[1].append((at, job.cost))
        return buckets

    def lost(self):
        return [job for job in self.jobs if job.outcomes == 0]

    def more_than_once(self):
        return [job for job in self.jobs if job.outcomes > 1]


class Worker:
    """One worker: implements :class:`bucketflow_celery.host.Host`, and keeps the gate to its promises."""

    def __init__(self, fleet, slots, prefetch):
        self.fleet, self.slots, self.prefetch = fleet, slots, prefetch
        self.version, self.table = "", fleet.table()
        self.stats = Stats()
        self.calls, self.timers, self.rounds = [], Counter(), Counter()
        self.busy, self.unacknowledged = 0, 0
        self.held, self.widened = {}, set()
        self.waiting_for_slot = None
        self.timer = None
        self.gate = None
        self.open()

    def open(self):
        self.gate = Gate(
            self,
            ask=lambda asks, done: self.fleet.ask(self, asks, done),
            resolve=self.resolve,
            outage=Outage(self.fleet.options["on_store_error"]),
            patience=Patience(self.fleet.options["max_hold"], self.fleet.options["max_countdown"]),
            stats=self.stats,
        )

    def close(self):
        """Shut down softly: what waits goes back to the broker."""
        entries = self.gate.close()
        self.gate, self.timer, self.waiting_for_slot = None, None, None
        for entry in entries:
            if entry in self.held:
                self.unhold(entry)
            self.acknowledge(entry.request)
            self.fleet.publish(Request(entry.request.job, entry.request.ticket))
        assert not self.held
        assert self.unacknowledged == 0

    def has_room(self):
        return self.gate is not None and self.unacknowledged - len(self.widened) < self.prefetch

    def receive(self, request):
        request.job.deliveries += 1
        self.unacknowledged += 1
        self.gate.enter(request, request.job.queue, request.ticket)

    def resolve(self, request, queue):
        job = request.job
        path = self.table.path(queue, job.tenant, job.name) if job.cost else ()
        check_cost(path, job.cost)
        return Passage(path, job.cost, job.max_wait, job.on_limit, job.tenant)

    def acknowledge(self, request):
        assert not request.settled, "one delivery was settled twice"
        request.settled = True
        self.unacknowledged -= 1
        if any(self.fleet.queues.values()):
            self.fleet.after(0, self.fleet.deliver)

    def gone(self, job):
        return job.revoked_at is not None and self.fleet.now >= job.revoked_at

    # Host

    def free(self):
        return self.slots - self.busy

    def when_free(self, callback):
        if self.free() > 0:
            self.fleet.after(0, self.counted(callback))
        else:
            self.waiting_for_slot = callback

    def start(self, entry):
        job = entry.request.job
        assert entry not in self.held
        self.acknowledge(entry.request)
        if self.gone(job):
            job.gone += 1
            return
        assert self.free() > 0, "more tasks than slots"
        job.path = entry.passage.path
        job.starts.append(self.fleet.now)
        self.busy += 1
        self.fleet.after(job.duration, self.finished)

    def finished(self):
        self.busy -= 1
        callback, self.waiting_for_slot = self.waiting_for_slot, None
        if callback is not None:
            self.counted(callback)()

    def is_gone(self, entry):
        gone = self.gone(entry.request.job)
        if gone:
            entry.request.job.gone += 1
            self.acknowledge(entry.request)
        return gone

    def send_back(self, entry, countdown):
        assert 0 < countdown <= self.fleet.options["max_countdown"] + 10
        ticket = Ticket(dict(entry.dues), entry.since)
        if not self.fleet.publish_later(entry.request.job, countdown, ticket):
            return False
        entry.request.job.returns += 1
        self.acknowledge(entry.request)
        return True

    def give_back(self, entry):
        self.acknowledge(entry.request)
        self.fleet.after(0, lambda: self.fleet.publish(Request(entry.request.job, entry.request.ticket)))
        return True

    def fail(self, request, error):
        request.job.errors.append(error)
        self.acknowledge(request)

    def hold(self, entry, level):
        assert entry not in self.held, "held twice"
        self.held[entry] = level
        if level is None or level.name != "all":
            self.widened.add(entry)
            self.fleet.after(0, self.fleet.deliver)

    def unhold(self, entry):
        del self.held[entry]
        self.widened.discard(entry)

    def refused(self, entry, level, wait):
        assert level in entry.passage.path
        assert wait > 0

    def call_after(self, seconds, callback):
        assert seconds > 0
        at = self.monotonic() + seconds
        if self.timer is not None and self.timer[0] <= at:
            return
        mine = self.timer = (at, callback)
        gate = self.gate
        self.timers[int(self.fleet.now)] += 1

        def ring():
            if self.timer is mine and self.gate is gate:
                self.timer = None
                self.counted(callback)()

        self.fleet.after(seconds, ring)

    def monotonic(self):
        return self.fleet.clock.now() / SECOND

    def time(self):
        return EPOCH + self.fleet.clock.now() / SECOND

    def counted(self, callback):
        gate = self.gate

        def run():
            if self.gate is gate:
                self.rounds[int(self.fleet.now)] += 1
                callback()

        return run
