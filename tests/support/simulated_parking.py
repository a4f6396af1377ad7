"""
The parking of a simulated worker: a real keeper with its room, holdings and lease, on the fleet's clock.

The store can be down, and may have done what it was asked all the same. A worker can die between any two events, or
stop for longer than its lease; the broker may forget the last acknowledgements.
"""

from __future__ import annotations

import hashlib
from functools import partial
from types import SimpleNamespace

from bucketflow.errors import StoreUnavailable
from bucketflow.limit import SECOND
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.config.levels import check_cost
from bucketflow_celery.config.policy import ThrottlePolicy
from bucketflow_celery.errors import ThrottleTimeout
from bucketflow_celery.parking import worker_lease as lease
from bucketflow_celery.scheduling.model import Lane, ParkedMessage
from bucketflow_celery.store.calls import begin_now
from bucketflow_celery.store.interfaces import ALL_QUEUES
from bucketflow_celery.store.memory_backlog import Reply
from bucketflow_celery.worker.parking_service import ParkingService


class Connection:
    """What one worker sees of the store: all of it, while it can be reached."""

    def __init__(self, worker):
        self._worker = worker
        self.backlogs = _Backlogs(worker)

    def admit(self, asks, version):
        worker = self._worker
        worker.count_call()
        return worker.fleet.reach(lambda: worker.fleet.store.admit(asks, version))

    def limits(self):
        fleet = self._worker.fleet
        return fleet.reach(fleet.store.limits)


class _Backlogs:
    def __init__(self, worker):
        self._worker = worker

    def __getattr__(self, name):
        worker, call = self._worker, getattr(self._worker.fleet.store.backlogs, name)

        def run(call):
            worker.count_call()
            return worker.fleet.reach(call.run)

        return lambda *args, **kwargs: Reply(partial(run, call(*args, **kwargs)))


class _Listener:
    """
    Hears the calls of the store, and passes them on as ``WorkerLease._run`` does.
    """

    def __init__(self, parking):
        self._parking = parking

    def put(self, queue):
        self._parking.hear(queue)


class Parking:
    """
    The parking of one worker process: implements :class:`bucketflow_celery.parking.interfaces.ParkingWorker`.

    Args:
        worker: The worker.
    """

    def __init__(self, worker):
        self.worker, self.fleet = worker, worker.fleet
        self.monotonic, self.start = worker.monotonic, worker.start
        throttle = SimpleNamespace(
            store=worker.store, settings=self.fleet.settings, active_limits=worker.active_limits, counters=worker.stats
        )
        self.keeper = ParkingService(throttle, worker.name)
        self.lease, self.holdings = self.keeper._lease, self.keeper._in_flight_tasks
        self.lease._clock = worker.monotonic
        self.lease.start = lambda: None
        self.listener = _Listener(self)
        self.is_listening = False
        self.acknowledged = []  # (seconds, request) of those that are parked
        self.jobs = {}
        self.is_over = False
        self._beat()

    def open(self, gate):
        room = self.keeper.open(self, gate, None)
        room._begin = self._begin
        gate.open(room)

    def close(self):
        return self.keeper.close()

    def leave(self):
        """Be shut down; the pool has ended."""
        self.keeper.leave()
        self.excuse()  # if the store is away, nobody is told what has ended
        self._end()

    def die(self):
        """Be killed: nobody is told anything."""
        self.excuse()
        self._end()

    def excuse(self):
        """Take note that what the worker has may run a second time."""
        for uid in self.holdings._tasks:
            self.jobs[uid].excused += 1

    def unheard(self, since):
        """Return the requests whose acknowledgement after *since* the broker did not hear."""
        unheard = [request for at, request in self.acknowledged if at > since]
        self.acknowledged = []
        return unheard

    def hear(self, queue):
        if not self.fleet._within(self.fleet.store_down, self.fleet.now):
            self.worker.later(self.fleet.latency / 2, lambda: self.lease._on_call(queue))

    def _end(self):
        self.is_over = True
        self._listen(listen=False)

    def _listen(self, *, listen):
        if listen and not self.is_listening:
            self.fleet.store.backlogs._listeners.append(self.listener)
            self.lease._on_call(ALL_QUEUES)
        elif not listen and self.is_listening:
            self.fleet.store.backlogs._listeners.remove(self.listener)
        self.is_listening = listen

    def _beat(self):
        """Do what the thread of the lease does."""
        if self.is_over:
            return
        try:
            self.lease._renew_if_due()
            self._listen(listen=True)
            pause = max(0.001, self.lease._next_renewal - self.monotonic())
        except StoreUnavailable:
            self._listen(listen=False)
            pause = lease._AGAIN
        self.worker.later(pause, self._beat)

    def _begin(self, call, done):
        if not self.fleet.latency:
            begin_now(call, done)
            return

        self.worker.at_a_distance(partial(begin_now, call), done)

    # ParkingWorker

    def queues(self):
        return list(self.fleet.queues)

    def is_fresh(self, entry):
        return self.fleet.tells_redelivery and not entry.request.redelivered

    def is_redelivered(self, entry):
        return entry.request.redelivered

    def parcel(self, entry, *, again):
        request, job = entry.request, entry.request.job
        salt = f" {id(request)}" if again else ""
        uid = hashlib.blake2b((request.message + salt).encode(), digest_size=14).digest()
        self.jobs[uid] = job
        patience = 0
        if job.max_wait is not None:
            waited = 0.0 if entry.first_refused_at is None else self.worker.time() - entry.first_refused_at
            patience = max(1, round((job.max_wait - waited) * SECOND))
        message = f"{self.fleet.jobs.index(job)} {entry.first_refused_at}".encode()
        return ParkedMessage(
            uid, Lane(job.tenant or "", job.name, job.rank), message, job.cost, patience, request.redelivered
        )

    def parked(self, entry, position):
        request = entry.request
        request.job.parked += position > 0
        self.acknowledged.append((self.fleet.now, request))
        self.worker.acknowledge(request)

    def receive(self, dispatched, on_end):
        index, since = dispatched.message.decode().split()
        item, job = dispatched.owned.item, self.fleet.jobs[int(index)]
        job.dispatched += 1
        self.jobs[item.uid] = job
        request = self.worker.dispatched(job, item.redelivered, on_end)
        policy = ThrottlePolicy(self.worker.path(job))
        return PendingTask(
            request, dispatched.owned.queue, policy, self.monotonic(), None if since == "None" else float(since)
        )

    def is_revoked_or_expired(self, entry):
        return self.worker.is_revoked_or_expired(entry)

    def give_up(self, entry):
        request, job = entry.request, entry.request.job
        try:
            check_cost(entry.policy.path, job.cost)
            error = ThrottleTimeout("queue", self.worker.time() - entry.first_refused_at, job.max_wait)
        except ValueError as never:
            error = never
        self.worker.fail(request, error)

    def is_settled(self, entry):
        return entry.request.settled

    def request_scale_up(self, more):
        self.worker.lacked_slots = more

    def call_soon(self, callback):
        self.worker.later(0, self.worker.counted(callback))
