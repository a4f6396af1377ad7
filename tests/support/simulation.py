"""
A fleet in one thread: real gates, a real (in-memory) store, and a pool, a broker and a clock that a test controls.

Events happen in the order of a fake clock, so the same workload always plays the same way, and an hour of it takes a
moment. The broker is as unkind as brokers are: what comes back is late by up to ``lateness``, goes to any worker, and
carries its ticket as JSON. What is parked, and a worker's lease on it, is in ``simulated_parking.py``.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from simulated_parking import Connection, Parking

from bucketflow.errors import StoreUnavailable
from bucketflow.limit import SECOND
from bucketflow.testing import FakeClock
from bucketflow_celery.admission.controller import AdmissionController
from bucketflow_celery.admission.interfaces import HoldLimits
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.config.levels import ThrottlePolicy
from bucketflow_celery.config.settings import Settings
from bucketflow_celery.config.table import LimitTable
from bucketflow_celery.scheduling.ticket import NO_TICKET, Ticket
from bucketflow_celery.stats import Stats
from bucketflow_celery.store.active_limits import ActiveLimits
from bucketflow_celery.store.calls import BlockingRunner, WorkerContext
from bucketflow_celery.testing import MemoryStore

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
    acks_late: bool = False  # once it was parked
    rank: int = 0
    message: str | None = None  # what tells it from others; None: that it is this one
    starts: list[float] = field(default_factory=list)
    path: tuple = ()
    errors: list[Exception] = field(default_factory=list)
    gone: int = 0
    deliveries: int = 0
    deferrals: int = 0
    parked: int = 0
    dispatched: int = 0
    excused: int = 0  # how often its worker died after it was dispatched out

    @property
    def outcomes(self):
        return len(self.starts) + len(self.errors) + self.gone


@dataclass(eq=False)
class DispatchRequest:
    """One delivery, by the broker or, with what is to be told of its end, from the backlog."""

    job: Job
    ticket: Ticket = NO_TICKET
    message: str = ""
    redelivered: bool = False
    on_end: Callable[[bool], None] | None = None
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
        parks: Whether the workers have waiting rooms.
        queues: Those that the workers consume, beside those that jobs are sent to.
        tells_redelivery: Whether the broker says of each delivery whether it is the first, as RabbitMQ does.
        backlog_limit, lease: See :class:`bucketflow_celery.config.settings.Settings`.
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
        parks=False,
        queues=("q",),
        tells_redelivery=True,
        backlog_limit=1_000_000,
        lease=30.0,
    ):
        self.clock = FakeClock(START)
        self.store = MemoryStore(self.clock)
        self.lateness, self.lost_replies = lateness, lost_replies
        self.store_down, self.broker_down = store_down, broker_down
        self.latency, self.parks, self.tells_redelivery = latency, parks, tells_redelivery
        self.settings = Settings(
            limits=parsed(limits), on_store_error=on_store_error, backlog_limit=backlog_limit, lease=lease
        )
        self.jobs = []
        self.queues = {queue: deque() for queue in queues}
        self.events = []
        self.order = itertools.count()
        self.number_of_returns, self.number_of_messages, self.coin = (itertools.count() for _ in range(3))
        self.options = {"max_hold": max_hold, "max_countdown": max_countdown}
        self.workers = [Worker(self, f"w{number}", slots, prefetch) for number in range(workers)]

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

    def run_out(self, until=4000.0):
        """Play on until all tasks have ended, and a little longer."""
        self.run(60)
        while self.now < until and (self.lost() or any(worker.busy for worker in self.workers)):
            self.run(self.now + 5)
        self.run(self.now + 20)

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
        self.at(job.at, lambda: self.publish(DispatchRequest(job, message=job.message or self.new_message())))
        return job

    def new_message(self):
        return f"message {next(self.number_of_messages)}"

    def publish(self, request):
        self.queues.setdefault(request.job.queue, deque()).append(request)
        self.deliver()

    def deliver(self):
        """Hand out what waits in the queues, in turn, to whoever has room."""
        found = True
        while found:
            found = False
            for name, queue in self.queues.items():
                for worker in sorted(self.workers, key=lambda worker: worker.unacknowledged - len(worker.widened)):
                    if queue and worker.has_room(name):
                        worker.deliver(queue.popleft())
                        found = True
                        break

    def publish_later(self, job, countdown, ticket):
        if self._within(self.broker_down, self.now):
            return False
        request = DispatchRequest(job, Ticket.read(json.loads(json.dumps(ticket.write()))), self.new_message())
        number = next(self.number_of_returns)
        self.after(countdown + self.lateness(number), lambda: self.come_back(request, number))
        return True

    def come_back(self, request, number):
        alive = [worker for worker in self.workers if worker.is_up()]
        if alive:
            alive[number % len(alive)].deliver(request)
        else:
            self.publish(request)

    def deliver_again(self, requests):
        """Deliver what was not acknowledged on a connection that is lost."""
        for request in requests:
            request.settled = True
            copy = replace(request, redelivered=True, settled=False)
            self.after(0.01, lambda copy=copy: self.publish(copy))

    # The store

    def reach(self, run):
        """Do what a worker asks of the store, or fail as its connection does."""
        if self._within(self.store_down, self.now):
            if self.lost_replies:
                run()
            raise StoreUnavailable("memory", "down")
        return run()

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


def parsed(raw):
    """Return the table of limits that a user writes like that."""
    mistakes = []
    table = LimitTable.parse(raw, mistakes)
    assert not mistakes, mistakes
    return table


class Runner:
    """Implements :class:`bucketflow_celery.store.calls.CallRunner` on the fleet's clock."""

    def __init__(self, worker):
        self.worker, self.direct = worker, BlockingRunner()

    def run(self, call, on_reply, *, inline=False):
        """Run *call*. At a distance it arrives even if this process is dead by then, and so does the reply."""
        worker = self.worker
        if not worker.fleet.latency:
            self.direct.run(call, on_reply, inline=inline)
            return
        life, gate, way = worker.life, worker.gate, worker.fleet.latency / 2

        def reach():
            if worker.gate is not gate and next(worker.fleet.coin) % 2:
                return  # it was lost with the connection
            self.direct.run(call, lambda reply: worker.later(way, lambda: on_reply(reply), life))

        worker.fleet.after(way, reach)

    def close(self):
        pass


class Worker:
    """
    One worker: implements :class:`bucketflow_celery.parking.interfaces.ParkingWorker`, and checks its callers.
    """

    def __init__(self, fleet, name, slots, prefetch):
        self.fleet, self.name, self.slots, self.prefetch = fleet, name, slots, prefetch
        self.tasks = dict.fromkeys("fgh")  # those it can run
        self.calls, self.timers, self.rounds = [], Counter(), Counter()
        self._be_born()
        self.open()

    def _be_born(self):
        self.life, self.frozen_until = object(), 0.0
        self.stats = Stats()
        self.store = Connection(self)
        self.active_limits = ActiveLimits(lambda: self.tasks, lambda: self.fleet.settings, lambda: self.store)
        self.context = WorkerContext(self.fleet.settings, self.store, self.active_limits, self.stats)
        self.busy, self.unacked = 0, {}
        self.held, self.widened, self.full = {}, set(), set()
        self.waiting_for_slot = self.timer = self.gate = self.parking = None

    def open(self):
        """Be connected to the broker."""
        with suppress(StoreUnavailable):
            self.active_limits.refresh()
        options = self.fleet.options
        self.gate = AdmissionController(
            self, self.context, self.runner(), HoldLimits(options["max_hold"], options["max_countdown"])
        )
        if self.fleet.parks:
            if self.parking is None:
                self.parking = Parking(self)
                self.encode, self.on_parked = self.parking.encode, self.parking.on_parked
                self.end_unstarted, self.receive = self.parking.end_unstarted, self.parking.receive
            self.parking.open(self.gate)

    def close(self):
        """Shut down softly: what waits goes back to the broker, what was dispatched to it to the others."""
        waiting = self._disconnect()
        for entry in waiting:
            request = entry.request
            self.acknowledge(request)
            self.fleet.publish(replace(request, redelivered=True, settled=False))
        assert self.unacknowledged == 0
        self._leave_when_idle()

    def lose_connection(self, forgotten=0.0):
        """Connect anew: the broker delivers again what it has not heard of, also in the last *forgotten* seconds."""
        if self.gate is None:
            return
        self._disconnect()
        unheard = [] if self.parking is None else self.parking.unheard(self.fleet.now - forgotten)
        self.fleet.deliver_again([*self.unacked, *unheard])
        self.unacked = {}
        self.open()
        self.fleet.deliver()

    def die(self, away):
        """Be killed, and be back *away* seconds later."""
        if self.parking is not None:
            self.parking.die()
        self.fleet.deliver_again(self.unacked)
        self._be_born()

        def back():
            if self.gate is None:
                self.open()
                self.fleet.deliver()

        self.fleet.after(away, back)

    def freeze(self, seconds):
        """Do nothing at all for so many seconds."""
        if self.gate is None:
            return
        self.frozen_until = self.fleet.now + seconds
        self.fleet.at(self.frozen_until, self.fleet.deliver)
        if self.parking is not None:
            self.parking.excuse()

    def is_up(self):
        return self.gate is not None and not self.is_frozen()

    def is_frozen(self):
        return self.fleet.now < self.frozen_until - 1 / SECOND

    def _disconnect(self):
        waiting = self.gate.close()
        if self.parking is not None:
            waiting += self.parking.close()
        self.gate, self.timer, self.waiting_for_slot = None, None, None
        for entry in waiting:
            if entry in self.held:
                self.release(entry)
        assert not self.held
        return waiting

    def _leave_when_idle(self):
        if self.gate is None and self.parking is not None and not self.busy:
            self.parking.release()
            self.parking = None

    @property
    def unacknowledged(self):
        return len(self.unacked)

    def has_room(self, queue):
        return self.is_up() and queue not in self.full and self.unacknowledged - len(self.widened) < self.prefetch

    def deliver(self, request):
        request.job.deliveries += 1
        self.unacked[request] = None
        ticket = request.ticket
        task = PendingTask(
            request,
            request.job.queue,
            self.monotonic(),
            ticket.waiting_since,
            dict(ticket.reservations),
            redelivered=request.redelivered if request.redelivered or self.fleet.tells_redelivery else None,
            can_park=True,
        )
        self.gate.submit(task)

    def dispatched(self, job, redelivered, on_end):
        return DispatchRequest(job, redelivered=redelivered, on_end=on_end)

    def count_call(self):
        self.calls.append(self.fleet.now)
        assert len(self.calls) < 2000 or self.calls[-2000] < self.fleet.now, "asks for ever in one instant"

    def path(self, job):
        return self.active_limits.table.path(job.queue, job.tenant, job.name) if job.cost else ()

    def resolve(self, task):
        job = task.request.job
        path = self.path(job)
        paused = self.active_limits.table.pause(task.queue, job.tenant, job.name)
        return ThrottlePolicy(path, job.cost, job.max_wait, job.on_limit, job.tenant, paused)

    def acknowledge(self, request):
        assert not request.settled, "one delivery was settled twice"
        request.settled = True
        if request.on_end is not None:
            request.on_end(False)  # noqa: FBT003 - it does not go back
            return
        del self.unacked[request]
        if any(self.fleet.queues.values()):
            self.fleet.after(0, self.fleet.deliver)

    def gone(self, job):
        return job.revoked_at is not None and self.fleet.now >= job.revoked_at

    def later(self, seconds, callback, life=None):
        """Call *callback* in *seconds*, unless this process is dead by then; when it is frozen, afterwards."""
        life = life or self.life

        def run():
            if self.life is not life:
                return
            if self.is_frozen():
                self.fleet.at(self.frozen_until, run)
            else:
                callback()

        self.fleet.after(seconds, run)

    # ParkingWorker

    def runner(self):
        return Runner(self)

    def queues(self):
        return list(self.fleet.queues)

    def is_acknowledged(self, task):
        return task.request.settled

    def request_scale_up(self, *, has_more):
        self.lacked_slots = has_more

    def call_soon(self, callback):
        self.later(0, self.counted(callback))

    def free(self):
        return self.slots - self.busy

    def when_free(self, callback):
        if self.free() > 0:
            self.later(0, self.counted(callback))
        else:
            self.waiting_for_slot = callback

    def start(self, entry):
        request, job = entry.request, entry.request.job
        assert entry not in self.held
        is_late = request.on_end is not None and job.acks_late
        if not is_late or self.gone(job):
            self.acknowledge(request)
        if self.gone(job):
            job.gone += 1
            return
        assert self.free() > 0, "more tasks than slots"
        job.path = entry.policy.path
        job.starts.append(self.fleet.now)
        self.busy += 1
        self.later(job.duration, lambda: self.finished(request if is_late else None))

    def finished(self, request):
        self.busy -= 1
        if request is not None:
            self.acknowledge(request)
        callback, self.waiting_for_slot = self.waiting_for_slot, None
        if callback is not None:
            self.counted(callback)()
        self._leave_when_idle()

    def is_revoked_or_expired(self, entry):
        gone = self.gone(entry.request.job)
        if gone:
            entry.request.job.gone += 1
            self.acknowledge(entry.request)
        return gone

    def defer(self, entry, countdown):
        assert 0 < countdown <= self.fleet.options["max_countdown"] + 10
        ticket = Ticket(dict(entry.reservations), entry.waiting_since)
        if not self.fleet.publish_later(entry.request.job, countdown, ticket):
            return False
        entry.request.job.deferrals += 1
        self.acknowledge(entry.request)
        return True

    def requeue(self, entry):
        request = entry.request
        self.acknowledge(request)
        self.fleet.deliver_again([request])
        return True

    def fail(self, task, error):
        task.request.job.errors.append(error)
        self.acknowledge(task.request)

    def hold(self, entry, level):
        assert entry not in self.held, "held twice"
        self.held[entry] = level
        if (level is None and len(self.fleet.queues) > 1) or (level is not None and level.name != "all"):
            self.widened.add(entry)
            self.later(0, self.fleet.deliver)
        self._fill_or_drain(entry.queue)

    def release(self, entry):
        del self.held[entry]
        self.widened.discard(entry)
        self._fill_or_drain(entry.queue)

    def _fill_or_drain(self, queue):
        """Consume no queue that fills a window of its own with what the store cannot take, until half has gone."""
        held = sum(entry.queue == queue and level is None for entry, level in self.held.items())
        if held >= self.prefetch:
            self.full.add(queue)
        elif held <= self.prefetch // 2 and queue in self.full:
            self.full.discard(queue)
            self.later(0, self.fleet.deliver)

    def record_refusal(self, entry, level, wait):
        assert level in entry.policy.path
        assert wait > 0

    def call_after(self, seconds, callback):
        assert seconds > 0
        at = self.monotonic() + seconds
        if self.timer is not None and self.timer[0] <= at:
            return
        mine = self.timer = (at, callback)
        self.timers[int(self.fleet.now)] += 1

        def ring():
            if self.timer is mine:
                self.timer = None
                self.counted(callback)()

        self.later(seconds, ring)

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
