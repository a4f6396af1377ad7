"""
Discrete-event simulation of a fleet of workers in one thread.

Admission, parking and the in-memory store are real. The pool, the broker and the clock are simulated. Events run in
the order of a fake clock: a workload always runs the same way, and an hour of it takes a moment. The broker delivers a
deferred task late by ``lateness``, to any worker, with its ticket as JSON. ``simulated_parking.py`` simulates parking
and the worker's lease.
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
from functools import partial

from simulated_parking import Connection, Parking

from bucketflow.errors import StoreUnavailable
from bucketflow.limit import SECOND
from bucketflow.testing import FakeClock
from bucketflow_celery.admission.controller import AdmissionController
from bucketflow_celery.admission.interfaces import WaitLimits
from bucketflow_celery.admission.local_limits import LocalLimits
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.config.levels import ThrottlePolicy
from bucketflow_celery.config.settings import Settings
from bucketflow_celery.config.table import LimitTable
from bucketflow_celery.scheduling.admit import AdmissionRequest
from bucketflow_celery.scheduling.ticket import NO_TICKET, Ticket
from bucketflow_celery.stats import Stats
from bucketflow_celery.store.active_limits import ActiveLimits
from bucketflow_celery.store.calls import BlockingRunner, WorkerContext
from bucketflow_celery.testing import MemoryStore
from bucketflow_celery.worker import pause_watch
from bucketflow_celery.worker.queueing_delay import QueueingDelay

START = 1000.0
EPOCH = 1_700_000_000.0


@dataclass(eq=False)
class Job:
    """
    One task as sent, and what became of it. Times are in seconds from the start.

    Attributes:
        acks_late: Whether the task is acknowledged after it ran, if it was dispatched from the backlog.
        message: Identifies the message; ``None``: each job has a message of its own.
        revoked_at, expires_at: When it is revoked, and when it expires.
        starts: When it started.
        path: The levels it passed when it started last.
        errors: The errors it failed with.
        gone: How often it ended because it was revoked.
        purged: How often it ended because it was purged.
        deliveries, deferrals: How often the broker delivered it, and how often it was deferred.
        parked, dispatched: How often it was stored in the backlog, and dispatched from it.
        allowed_repeats: How often it may run again: its worker was killed, frozen or shut down while it was in flight.
    """

    at: float = 0.0
    queue: str = "q"
    tenant: str | None = None
    name: str = "f"
    cost: float = 1.0
    duration: float = 0.0
    max_wait: float | None = None
    on_limit: str = "retry"
    revoked_at: float | None = None
    expires_at: float | None = None
    acks_late: bool = False
    rank: int = 0
    message: str | None = None
    starts: list[float] = field(default_factory=list)
    path: tuple = ()
    errors: list[Exception] = field(default_factory=list)
    gone: int = 0
    purged: int = 0
    deliveries: int = 0
    deferrals: int = 0
    parked: int = 0
    dispatched: int = 0
    allowed_repeats: int = 0

    @property
    def outcomes(self):
        return len(self.starts) + len(self.errors) + self.gone + self.purged


@dataclass(eq=False)
class Delivery:
    """
    One delivery of a job, by the broker or from the backlog.

    Attributes:
        eta: Until when its worker keeps it before it is due, in seconds from the start.
        on_end: For a dispatched task: reports its outcome; ``None`` for a delivery by the broker.
        settled: Whether it was acknowledged or rejected.
    """

    job: Job
    ticket: Ticket = NO_TICKET
    message: str = ""
    redelivered: bool = False
    eta: float = 0.0
    on_end: Callable[[bool], None] | None = None
    settled: bool = False


class Fleet:
    """
    Workers, their broker and their store.

    Args:
        limits: The table of limits, as a user writes it.
        workers: Number of workers.
        slots: Pool slots of each worker.
        prefetch: Most unacknowledged deliveries of each worker, beside those it holds in a widened window.
        hold_limit: Most messages that a worker holds for tenants and task types.
        max_hold, max_countdown, max_unacknowledged: Seconds; see
            :class:`bucketflow_celery.admission.interfaces.WaitLimits`.
        read_seconds: Seconds that a worker takes to receive one message. Above 0, a deferred task goes to the end of
            its queue at once, and the worker that receives it keeps it until its ETA; *lateness* has no effect.
        lateness: Maps the number of a deferral, from 0, to the seconds by which the broker delivers it late.
        store_down, broker_down: Intervals, in seconds from the start, in which calls to the store, or publishing, fail.
        store_full: Intervals in which the store has no memory for more parked tasks.
        refuses_copies: Whether the broker refuses every copy of a task, for good.
        lost_replies: Whether a failing call takes effect: only its reply is lost.
        latency: Seconds of one round trip to the store; 0: the reply is immediate.
        parks: Whether the workers park tasks.
        queues: Queues that the workers consume, beside those that jobs are sent to.
        tells_redelivery: Whether the broker flags redeliveries, as RabbitMQ does.
        on_store_error, local_share, backlog_limit, lease: See :class:`bucketflow_celery.config.settings.Settings`.
    """

    def __init__(  # noqa: PLR0913
        self,
        limits,
        *,
        workers=1,
        slots=4,
        prefetch=16,
        hold_limit=1000,
        on_store_error="hold",
        local_share=None,
        max_hold=600.0,
        max_countdown=900.0,
        max_unacknowledged=math.inf,
        read_seconds=0.0,
        lateness=lambda _number: 0.0,
        store_down=(),
        store_full=(),
        broker_down=(),
        refuses_copies=False,
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
        self.read_seconds, self.lateness, self.lost_replies = read_seconds, lateness, lost_replies
        self.store_down, self.store_full, self.broker_down = store_down, store_full, broker_down
        self.refuses_copies = refuses_copies
        self.latency, self.parks, self.tells_redelivery = latency, parks, tells_redelivery
        self.settings = Settings(
            limits=parsed(limits),
            on_store_error=on_store_error,
            local_share=local_share,
            backlog_limit=backlog_limit,
            lease=lease,
        )
        self.jobs = []
        self.queues = {queue: deque() for queue in queues}
        self.events, self.unacknowledged = [], []
        self.order = itertools.count()
        self.deferral_numbers, self.message_numbers, self.lost_call_numbers = (itertools.count() for _ in range(3))
        self.wait_limits = WaitLimits(max_hold, max_countdown, max_unacknowledged)
        self.hold_limit = hold_limit
        self.workers = [Worker(self, f"w{number}", slots, prefetch) for number in range(workers)]

    # Time

    @property
    def now(self):
        """Seconds since the start."""
        return self.clock.now() / SECOND - START

    def at(self, seconds, callback):
        """Call *callback* at *seconds* from the start, rounded up to 1 µs: a timer never fires early."""
        at = max(self.clock.now(), math.ceil(round((seconds + START) * SECOND, 3)))
        heapq.heappush(self.events, (at, next(self.order), callback))

    def after(self, seconds, callback):
        """Call *callback* in *seconds*, rounded up to 1 µs."""
        at = self.clock.now() + math.ceil(round(seconds * SECOND, 3))
        heapq.heappush(self.events, (at, next(self.order), callback))

    def run(self, until=math.inf, max_events=200_000):
        """Run all events up to *until*, in seconds; return their number. Fail at *max_events*."""
        count = 0
        while self.events and (self.events[0][0] / SECOND - START) <= until:
            at, _, callback = heapq.heappop(self.events)
            self.clock._now = at
            callback()
            count += 1
            assert count < max_events, f"endless loop at {self.now:.6f} s"
        if until < math.inf:
            self.clock._now = max(self.clock._now, round((until + START) * SECOND))
        return count

    @staticmethod
    def _within(intervals, now):
        return any(start <= now < end for start, end in intervals)

    def run_out(self, until=4000.0):
        """Run until all tasks have ended, at most until *until* seconds, and 20 s longer."""
        self.run(60)
        while self.now < until and (self.lost() or any(worker.busy for worker in self.workers)):
            self.run(self.now + 5)
        self.run(self.now + 20)

    def restart(self, worker, at, away):
        """Shut *worker* down softly at *at*, and start it again *away* seconds later."""

        def reopen():
            if worker.admission is None:
                worker.open()
                self.deliver()

        self.at(at, lambda: worker.admission and worker.close())
        self.at(at + away, reopen)

    # The broker

    def send(self, job):
        self.jobs.append(job)
        self.at(job.at, lambda: self.publish(Delivery(job, message=job.message or self.new_message())))
        return job

    def new_message(self):
        return f"message {next(self.message_numbers)}"

    def publish(self, delivery):
        self.queues.setdefault(delivery.job.queue, deque()).append(delivery)
        self.deliver()

    def deliver(self):
        """Deliver one message of each queue in turn, each to the least loaded worker that can receive it."""
        found = True
        while found:
            found = False
            for name, queue in self.queues.items():
                for worker in sorted(self.workers, key=lambda worker: worker.unacknowledged - len(worker.widened)):
                    if queue and worker.can_receive(name):
                        worker.deliver(queue.popleft())
                        found = True
                        break

    def publish_deferred(self, job, countdown, ticket):
        """Publish *job* with its *ticket*, due in *countdown* seconds; ``False`` while publishing fails."""
        if self._within(self.broker_down, self.now):
            return False
        delivery = Delivery(job, Ticket.read(json.loads(json.dumps(ticket.write()))), self.new_message())
        number = next(self.deferral_numbers)
        if self.read_seconds:
            delivery.eta = self.now + countdown
            self.publish(delivery)
            return True
        self.after(countdown + self.lateness(number), lambda: self.deliver_deferred(delivery, number))
        return True

    def deliver_deferred(self, delivery, number):
        running = [worker for worker in self.workers if worker.is_up()]
        if running:
            running[number % len(running)].deliver(delivery)
        else:
            self.publish(delivery)

    def redeliver(self, deliveries):
        """Publish *deliveries* again, marked as redelivered."""
        for delivery in deliveries:
            delivery.settled = True
            copy = replace(delivery, redelivered=True, settled=False)
            self.after(0.01, lambda copy=copy: self.publish(copy))

    # The store

    def call_store(self, run):
        """Run a call to the store. Raises ``StoreUnavailable`` while the store is down."""
        if self._within(self.store_down, self.now):
            if self.lost_replies:
                run()
            raise StoreUnavailable("memory", "down")
        return run()

    # Results

    def calls(self):
        """Return the number of round trips of all workers."""
        return sum(len(worker.calls) for worker in self.workers)

    def starts(self):
        """Return (seconds, job) of every start, ordered by time."""
        return sorted(((at, job) for job in self.jobs for at in job.starts), key=lambda start: start[0])

    def starts_by_bucket(self):
        """Return each level with the (seconds, cost) of its starts, by key of the level."""
        buckets = {}
        for at, job in self.starts():
            for level in job.path:
                buckets.setdefault(level.key, (level, []))[1].append((at, job.cost))
        return buckets

    def longest_unacknowledged(self):
        """Return the longest time in seconds for which a message was delivered and not acknowledged."""
        return max(self.unacknowledged)

    def lost(self):
        """Return the jobs that have neither started nor ended."""
        return [job for job in self.jobs if job.outcomes == 0]

    def more_than_once(self):
        """Return the jobs that have started or ended more than once."""
        return [job for job in self.jobs if job.outcomes > 1]


def parsed(raw):
    """Return the parsed table of limits."""
    errors = []
    table = LimitTable.parse(raw, errors)
    assert not errors, errors
    return table


class Runner:
    """Implements :class:`bucketflow_celery.store.calls.CallRunner` on the fleet's clock."""

    def __init__(self, worker):
        self.worker, self.direct = worker, BlockingRunner()

    def run(self, call, on_reply, *, inline=False):
        """
        Run *call*; request and reply take half of the latency each.

        Of the calls under way when a worker is killed or disconnected, every second one does not arrive. A killed
        process receives no reply.
        """
        worker = self.worker
        if not worker.fleet.latency:
            self.direct.run(call, on_reply, inline=inline)
            return
        process, admission, one_way = worker.process, worker.admission, worker.fleet.latency / 2

        def arrive():
            if worker.admission is not admission and next(worker.fleet.lost_call_numbers) % 2:
                return
            self.direct.run(call, lambda reply: worker.later(one_way, lambda: on_reply(reply), process))

        worker.fleet.after(one_way, arrive)

    def close(self):
        pass


class Worker:
    """
    Implements :class:`bucketflow_celery.parking.interfaces.ParkingWorker`, and asserts that its callers behave.

    Attributes:
        tasks: Names of the task types that it can run.
        calls: When it called the store, in seconds.
        timers, rounds: Number of timers set, and of rounds started by a callback, by second.
        process: Identifies the current process. Callbacks of an earlier one are dropped.
        admission: The admission controller; ``None`` while the worker is not connected.
        parking: The simulated parking; ``None`` if the process has none.
        held: The held tasks, each with the level that holds it; ``None``: they wait for the store.
        widened: Held tasks that do not count in the prefetch window.
        full: Queues that are not consumed for the time being.
        not_due: The deferred tasks that it keeps until their ETA.
        reads_from: When it can receive the next message, in seconds.
    """

    def __init__(self, fleet, name, slots, prefetch):
        self.fleet, self.name, self.slots, self.prefetch = fleet, name, slots, prefetch
        self.hold_limit = fleet.hold_limit
        self.tasks = dict.fromkeys("fgh")
        self.calls, self.timers, self.rounds = [], Counter(), Counter()
        self._start_process()
        self.open()

    def _start_process(self):
        self.process, self.frozen_until = object(), 0.0
        self.stats = Stats()
        self.store = Connection(self)
        self.active_limits = ActiveLimits(
            lambda: self.tasks, lambda: self.fleet.settings, lambda: self.store, self.monotonic
        )
        self.context = WorkerContext(self.fleet.settings, self.store, self.active_limits, self.stats)
        self.local = LocalLimits(self.fleet.settings)
        self.busy, self.unacked = 0, {}
        self.held, self.widened, self.full = {}, set(), set()
        self.not_due, self.reads_from, self.is_watching_pauses = {}, 0.0, False
        self.received = Counter()
        self.delay = QueueingDelay(
            lambda queue: len(self.fleet.queues[queue]), self.received.__getitem__, self.monotonic
        )
        self.waiting_for_slot = self.timer = self.admission = self.parking = None

    def open(self):
        """Connect to the broker."""
        with suppress(StoreUnavailable):
            self.active_limits.refresh()
        self.admission = AdmissionController(self, self.context, self.runner(), self.fleet.wait_limits, self.local)
        if self.fleet.parks:
            if self.parking is None:
                self.parking = Parking(self)
                self.encode, self.on_parked = self.parking.encode, self.parking.on_parked
                self.end_unstarted, self.receive = self.parking.end_unstarted, self.parking.receive
            self.parking.open(self.admission)

    def close(self):
        """Shut down softly: requeue the pending tasks, and release the lease when the pool is idle."""
        for task in self._disconnect():
            delivery = task.request
            self.acknowledge(delivery)
            self.fleet.publish(replace(delivery, redelivered=True, settled=False))
        assert self.unacknowledged == 0
        self._leave_when_idle()

    def lose_connection(self, forgotten=0.0):
        """
        Reconnect: the broker redelivers what is unacknowledged.

        It also redelivers the parked messages that were acknowledged in the last *forgotten* seconds.
        """
        if self.admission is None:
            return
        self._disconnect()
        lost = [] if self.parking is None else self.parking.lost_acknowledgements(self.fleet.now - forgotten)
        self.fleet.redeliver([*self.unacked, *lost])
        self.unacked = {}
        self.open()
        self.fleet.deliver()

    def kill(self, away):
        """Kill the process; a new one starts *away* seconds later."""
        if self.parking is not None:
            self.parking.kill()
        self.fleet.redeliver(self.unacked)
        self._start_process()

        def reopen():
            if self.admission is None:
                self.open()
                self.fleet.deliver()

        self.fleet.after(away, reopen)

    def freeze(self, seconds):
        """Suspend the process for *seconds*."""
        if self.admission is None:
            return
        self.frozen_until = self.fleet.now + seconds
        self.fleet.at(self.frozen_until, self.fleet.deliver)
        if self.parking is not None:
            self.parking.allow_repeats()

    def is_up(self):
        return self.admission is not None and not self.is_frozen()

    def is_frozen(self):
        return self.fleet.now < self.frozen_until - 1 / SECOND

    def _disconnect(self):
        waiting = self.admission.close()
        if self.parking is not None:
            waiting += self.parking.close()
        self.admission, self.timer, self.waiting_for_slot = None, None, None
        for task in waiting:
            if task in self.held:
                self.release(task)
        assert not self.held
        return waiting

    def _leave_when_idle(self):
        if self.admission is None and self.parking is not None and not self.busy:
            self.parking.release()
            self.parking = None

    @property
    def unacknowledged(self):
        return len(self.unacked)

    def can_receive(self, queue):
        if self.fleet.now < self.reads_from - 1 / SECOND:
            return False
        in_window = self.unacknowledged - len(self.widened) - len(self.not_due)
        return self.is_up() and queue not in self.full and in_window < self.prefetch

    def deliver(self, delivery):
        delivery.job.deliveries += 1
        self.unacked[delivery] = self.fleet.now
        if self.fleet.read_seconds:
            self.reads_from = self.fleet.now + self.fleet.read_seconds
            self.later(self.fleet.read_seconds, self.fleet.deliver)
        if delivery.eta > self.fleet.now:
            self.not_due[delivery] = True
            self.later(delivery.eta - self.fleet.now, lambda: self.submit_due(delivery))
            if delivery.ticket.paused is not None and not self.is_watching_pauses:
                self.is_watching_pauses = True
                self.later(pause_watch.CHECK_INTERVAL, self.watch_pauses)
        else:
            self.submit(delivery)

    def submit_due(self, delivery):
        if self.not_due.pop(delivery, False):
            self.submit(delivery)

    def watch_pauses(self):
        """Start the deferred tasks of pauses that have ended, as :class:`PauseWatch` does."""
        self.admission.run()
        paused = [delivery for delivery in self.not_due if delivery.ticket.paused is not None]
        for delivery in sorted(paused, key=lambda delivery: delivery.ticket.waiting_since):
            if delivery.ticket.paused not in self.active_limits.table.paused:
                self.submit_due(delivery)
        self.is_watching_pauses = bool(paused)
        if paused:
            self.later(pause_watch.CHECK_INTERVAL, self.watch_pauses)

    def submit(self, delivery):
        self.received[delivery.job.queue] += 1
        ticket = delivery.ticket
        task = PendingTask(
            delivery,
            delivery.job.queue,
            self.monotonic(),
            ticket.waiting_since,
            dict(ticket.reservations),
            redelivered=delivery.redelivered if delivery.redelivered or self.fleet.tells_redelivery else None,
            has_returned=ticket is not NO_TICKET,
            due_since=ticket.due_since,
            returned_at=None if ticket is NO_TICKET else EPOCH + START + delivery.eta,
            can_park=True,
            rank=delivery.job.rank,
            seen_at=ticket.seen_at,
            expires_at=None if delivery.job.expires_at is None else EPOCH + START + delivery.job.expires_at,
        )
        self.admission.submit(task)

    def dispatched(self, job, redelivered, on_end):
        return Delivery(job, redelivered=redelivered, on_end=on_end)

    def count_call(self):
        self.calls.append(self.fleet.now)
        assert len(self.calls) < 2000 or self.calls[-2000] < self.fleet.now, "endless calls in one instant"

    def path(self, job):
        return self.active_limits.table.path(job.queue, job.tenant, job.name) if job.cost else ()

    def resolve(self, task):
        job = task.request.job
        path = self.path(job)
        paused = self.active_limits.table.pause(task.queue, job.tenant, job.name)
        purged_at = self.active_limits.purges.purged_at(task.queue, job.tenant, job.name)
        options = (job.max_wait, job.on_limit, job.tenant, paused)
        return ThrottlePolicy(path, job.cost, *options, task=job.name, purged_at=purged_at)

    def seen_at(self, task):
        return self.active_limits.store_time(task.received_at) if task.seen_at is None else task.seen_at

    def drop(self, task):
        task.request.job.purged += 1
        self.cancel_reservations(task.policy, task.reservations)
        self.acknowledge(task.request)

    def end_purged(self, reservations):
        """End the purged tasks that wait for their ETA, as :class:`PurgedTasks` does."""
        ended = 0
        for request in reservations:
            with suppress(StoreUnavailable):
                self.fleet.call_store(partial(self.fleet.store.cancel_reservation, request))
        for delivery in list(self.not_due):
            seen_at = delivery.ticket.seen_at
            task = PendingTask(delivery, delivery.job.queue, 0.0)
            policy = self.resolve(task)
            if seen_at is not None and seen_at < policy.purged_at:
                del self.not_due[delivery]
                task.policy, task.reservations, ended = policy, dict(delivery.ticket.reservations), ended + 1
                self.drop(task)
        return ended

    def cancel_reservations(self, policy, reservations):
        request = AdmissionRequest(policy.path, policy.cost, Ticket(reservations).at(policy.path))
        if any(request.reservations):
            with suppress(StoreUnavailable):
                self.fleet.call_store(partial(self.fleet.store.cancel_reservation, request))

    def acknowledge(self, delivery):
        assert not delivery.settled, "a delivery was settled twice"
        delivery.settled = True
        if delivery.on_end is not None:
            delivery.on_end(False)  # noqa: FBT003 - it does not return to its lane
            return
        self.fleet.unacknowledged.append(self.fleet.now - self.unacked.pop(delivery))
        if any(self.fleet.queues.values()):
            self.fleet.after(0, self.fleet.deliver)

    def is_revoked(self, job):
        return any(at is not None and self.fleet.now >= at for at in (job.revoked_at, job.expires_at))

    def later(self, seconds, callback, process=None):
        """Call *callback* in *seconds*; after a freeze, if the process is frozen; never, if it was killed."""
        process = process or self.process

        def run():
            if self.process is not process:
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

    def request_scale_up(self):
        """Do nothing: the pool has one size."""

    def call_soon(self, callback):
        self.later(0, self.counted(callback))

    def free(self):
        return self.slots - self.busy

    def when_free(self, callback):
        if self.free() > 0:
            self.later(0, self.counted(callback))
        else:
            self.waiting_for_slot = callback

    def start(self, task):
        delivery, job = task.request, task.request.job
        assert task not in self.held
        is_late = delivery.on_end is not None and job.acks_late
        if not is_late or self.is_revoked(job):
            self.acknowledge(delivery)
        if self.is_revoked(job):
            job.gone += 1
            return
        assert self.free() > 0, "more tasks than slots"
        job.path = task.policy.path
        job.starts.append(self.fleet.now)
        self.busy += 1
        self.later(job.duration, lambda: self.finished(delivery if is_late else None))

    def finished(self, unacknowledged):
        self.busy -= 1
        if unacknowledged is not None:
            self.acknowledge(unacknowledged)
        callback, self.waiting_for_slot = self.waiting_for_slot, None
        if callback is not None:
            self.counted(callback)()
        self._leave_when_idle()

    def is_revoked_or_expired(self, task):
        is_revoked = self.is_revoked(task.request.job)
        if is_revoked:
            task.request.job.gone += 1
            self.acknowledge(task.request)
        return is_revoked

    def can_defer(self, _task):
        return not self.fleet.refuses_copies

    def defer(self, task, countdown):
        if not self.can_defer(task):
            return False
        assert 0 <= countdown <= self.fleet.wait_limits.max_countdown + 10
        job, paused = task.request.job, task.policy.paused
        names = {"tenant": f"tenant:{job.tenant}", "task": f"task:{job.name}"}
        ticket = task.ticket(names.get(paused))
        assert not any(key.startswith("local") for key in ticket.reservations)
        if not self.fleet.publish_deferred(task.request.job, countdown, ticket):
            return False
        task.request.job.deferrals += 1
        self.acknowledge(task.request)
        return True

    can_hold_many = keeps_deferred = True

    def queueing_delay(self, queue):
        return self.delay.of(queue) if self.fleet.read_seconds else 0.0

    def requeue(self, task):
        delivery = task.request
        self.acknowledge(delivery)
        self.fleet.redeliver([delivery])
        return True

    def fail(self, task, error):
        task.request.job.errors.append(error)
        self.acknowledge(task.request)

    def hold(self, task, level):
        assert task not in self.held, "held twice"
        self.held[task] = level
        if (level is None and len(self.fleet.queues) > 1) or (level is not None and level.name != "all"):
            self.widened.add(task)
            self.later(0, self.fleet.deliver)
        self._pause_or_resume(task.queue)

    def release(self, task):
        del self.held[task]
        self.widened.discard(task)
        self._pause_or_resume(task.queue)

    def _pause_or_resume(self, queue):
        """
        Consume *queue*, or stop consuming it.

        Consumption stops when the tasks that wait for the store fill a prefetch window. It resumes when they fill half
        of one.
        """
        held = sum(task.queue == queue and level is None for task, level in self.held.items())
        if held >= self.prefetch:
            self.full.add(queue)
        elif held <= self.prefetch // 2 and queue in self.full:
            self.full.discard(queue)
            self.later(0, self.fleet.deliver)

    def record_refusal(self, task, level, wait):
        assert level in task.policy.path
        assert wait > 0

    def call_after(self, seconds, callback):
        assert seconds > 0
        at = self.monotonic() + seconds
        if self.timer is not None and self.timer[0] <= at:
            return
        timer = self.timer = (at, callback)
        self.timers[int(self.fleet.now)] += 1

        def fire():
            if self.timer is timer:
                self.timer = None
                self.counted(callback)()

        self.later(seconds, fire)

    def monotonic(self):
        return self.fleet.clock.now() / SECOND

    def time(self):
        return EPOCH + self.fleet.clock.now() / SECOND

    def counted(self, callback):
        """Return *callback* as a counted round, to be dropped once the connection has ended."""
        admission = self.admission

        def run():
            if self.admission is admission:
                self.rounds[int(self.fleet.now)] += 1
                callback()

        return run
