"""
The parking of a simulated worker: a real service with its lease and in-flight tasks, on the fleet's clock.

The store can be down, and may have done what it was asked all the same. A worker can die between any two events, or
stop for longer than its lease; the broker may forget the last acknowledgements.
"""

from __future__ import annotations

import hashlib
from functools import partial

from bucketflow.errors import StoreUnavailable
from bucketflow.limit import SECOND
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.config.levels import ThrottlePolicy, check_cost
from bucketflow_celery.errors import ThrottleTimeout
from bucketflow_celery.parking import worker_lease
from bucketflow_celery.scheduling.model import Lane, ParkedMessage
from bucketflow_celery.store.interfaces import ALL_QUEUES
from bucketflow_celery.store.memory_backlog import MemoryStoreCall
from bucketflow_celery.worker.parking_service import ParkingService


class Connection:
    """What one worker sees of the store: all of it, while it can be reached."""

    def __init__(self, worker):
        self._worker = worker
        self.backlogs = _Backlogs(worker)

    def admit(self, requests, version):
        worker, call = self._worker, self._worker.fleet.store.admit(requests, version)

        def run():
            worker.count_call()
            return worker.fleet.reach(call.run)

        return MemoryStoreCall(run)

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

        return lambda *args, **kwargs: MemoryStoreCall(partial(run, call(*args, **kwargs)))


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
    The parking of one worker process: its real service, lease and in-flight tasks, on the fleet's clock.

    Args:
        worker: The worker.
    """

    def __init__(self, worker):
        self.worker, self.fleet = worker, worker.fleet
        self.service = ParkingService(worker.context, worker.name)
        self.lease, self.in_flight_tasks = self.service._lease, self.service._in_flight_tasks
        self.lease._clock = worker.monotonic
        self.lease.start = lambda: None
        self.listener = _Listener(self)
        self.is_listening = False
        self.acknowledged = []  # (seconds, request) of those that are parked
        self.jobs = {}
        self.is_over = False
        self._beat()

    def open(self, gate):
        gate.open(self.service.open(self.worker, gate, self.worker.runner()))

    def close(self):
        return self.service.close()

    def release(self):
        """Be shut down; the pool has ended."""
        self.service.release()
        self.excuse()  # if the store is away, it does not learn what has ended
        self._end()

    def die(self):
        """Be killed: nothing is reported."""
        self.excuse()
        self._end()

    def excuse(self):
        """Record that the tasks in flight may run a second time."""
        for uid in self.in_flight_tasks._tasks:
            self.jobs[uid].excused += 1

    def unheard(self, since):
        """Return the requests whose acknowledgement after *since* the broker has not processed."""
        unheard = [request for at, request in self.acknowledged if at > since]
        self.acknowledged = []
        return unheard

    def hear(self, queue):
        if not self.fleet._within(self.fleet.store_down, self.fleet.now):
            self.worker.later(self.fleet.latency / 2, lambda: self.lease._on_notify(queue))

    def _end(self):
        self.is_over = True
        self._listen(listen=False)

    def _listen(self, *, listen):
        if listen and not self.is_listening:
            self.fleet.store.backlogs._listeners.append(self.listener)
            self.lease._on_notify(ALL_QUEUES)
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
            pause = max(0.001, self.lease._next_renewal - self.worker.monotonic())
        except StoreUnavailable:
            self._listen(listen=False)
            pause = worker_lease._RETRY_PAUSE
        self.worker.later(pause, self._beat)

    # ParkingWorker

    def encode(self, task, *, is_duplicate):
        request, job = task.request, task.request.job
        salt = f" {id(request)}" if is_duplicate else ""
        uid = hashlib.blake2b((request.message + salt).encode(), digest_size=14).digest()
        self.jobs[uid] = job
        max_wait_us = 0
        if job.max_wait is not None:
            waited = 0.0 if task.waiting_since is None else self.worker.time() - task.waiting_since
            max_wait_us = max(1, round((job.max_wait - waited) * SECOND))
        message = f"{self.fleet.jobs.index(job)} {task.waiting_since}".encode()
        lane = Lane(job.tenant or "", job.name, job.rank)
        return ParkedMessage(uid, lane, message, job.cost, max_wait_us, request.redelivered)

    def on_parked(self, task, position):
        request = task.request
        request.job.parked += position > 0
        self.acknowledged.append((self.fleet.now, request))
        self.worker.acknowledge(request)

    def receive(self, dispatched, on_end):
        index, since = dispatched.message.decode().split()
        item, job = dispatched.owned.item, self.fleet.jobs[int(index)]
        job.dispatched += 1
        self.jobs[item.uid] = job
        request = self.worker.dispatched(job, item.redelivered, on_end)
        task = PendingTask(request, dispatched.owned.queue, self.worker.monotonic())
        task.waiting_since = None if since == "None" else float(since)
        task.policy = ThrottlePolicy(self.worker.path(job))
        return task

    def end_unstarted(self, task):
        job = task.request.job
        try:
            check_cost(task.policy.path, job.cost)
            error = ThrottleTimeout("queue", self.worker.time() - task.waiting_since, job.max_wait)
        except ValueError as never:
            error = never
        self.worker.fail(task, error)
