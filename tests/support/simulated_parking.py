"""
Parking of a simulated worker: the real parking service, worker lease and in-flight tasks, on the fleet's clock.

A call to the store can fail before or after it took effect. A worker can be killed between any two events, or freeze
for longer than its lease. The broker can lose the last acknowledgements.
"""

from __future__ import annotations

import hashlib
from functools import partial

from bucketflow.errors import StoreFull, StoreUnavailable
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
    """Connection of one worker to the fleet's store; its calls are counted, and fail while the store is down."""

    def __init__(self, worker):
        self._worker = worker
        self.backlogs = _Backlogs(worker)

    def admit(self, requests, version):
        worker, call = self._worker, self._worker.fleet.store.admit(requests, version)

        def run():
            worker.count_call()
            return worker.fleet.call_store(call.run)

        return MemoryStoreCall(run)

    def charge(self, costs):
        worker, call = self._worker, self._worker.fleet.store.charge(costs)
        return MemoryStoreCall(lambda: worker.fleet.call_store(call.run))

    def limits(self):
        fleet = self._worker.fleet
        return fleet.call_store(fleet.store.limits)

    def purges(self):
        fleet = self._worker.fleet
        return fleet.call_store(fleet.store.purges)


class _Backlogs:
    def __init__(self, worker):
        self._worker = worker

    def view(self, queue):
        fleet = self._worker.fleet
        return fleet.call_store(lambda: fleet.store.backlogs.view(queue))

    def __getattr__(self, name):
        worker, call = self._worker, getattr(self._worker.fleet.store.backlogs, name)

        def run(call):
            worker.count_call()
            if name == "park" and worker.fleet._within(worker.fleet.store_full, worker.fleet.now):
                raise StoreFull("memory", "full")
            return worker.fleet.call_store(call.run)

        return lambda *args, **kwargs: MemoryStoreCall(partial(run, call(*args, **kwargs)))


class _Listener:
    """Receives the store's notifications and passes them on, as ``WorkerLease._run`` does."""

    def __init__(self, parking):
        self._parking = parking

    def put(self, queue):
        self._parking.on_notification(queue)


class Parking:
    """
    Parking of one simulated worker process.

    Args:
        worker: The worker.

    Attributes:
        service: The real parking service.
        lease: The real worker lease; :meth:`_beat` does the work of its thread.
        in_flight_tasks: The tasks dispatched to this process.
        acknowledged: Seconds and delivery of each acknowledged message, until the connection is lost.
        jobs: The jobs by the uid of their parked message.
    """

    def __init__(self, worker):
        self.worker, self.fleet = worker, worker.fleet
        self.service = ParkingService(worker.context, worker.name)
        self.lease, self.in_flight_tasks = self.service._lease, self.service._in_flight_tasks
        self.lease._clock = worker.monotonic
        self.lease.start = lambda: None
        self.listener = _Listener(self)
        self.is_listening = False
        self.acknowledged = []
        self.jobs = {}
        self.has_ended = False
        self._beat()

    def open(self, admission):
        admission.open(self.service.open(self.worker, admission, self.worker.runner()))

    def close(self):
        return self.service.close()

    def release(self):
        """Release the lease; the pool has ended."""
        self.service.release()
        self.allow_repeats()  # while the store is down, the outcomes of these tasks cannot be reported
        self._end()

    def kill(self):
        """End without reporting an outcome or releasing the lease."""
        self.allow_repeats()
        self._end()

    def allow_repeats(self):
        """Allow each task in flight to run once more."""
        for uid in self.in_flight_tasks._tasks:
            self.jobs[uid].allowed_repeats += 1

    def lost_acknowledgements(self, since):
        """Return the deliveries that were acknowledged after *since*, in seconds: the broker lost their acks."""
        lost = [delivery for at, delivery in self.acknowledged if at > since]
        self.acknowledged = []
        return lost

    def on_notification(self, queue):
        if not self.fleet._within(self.fleet.store_down, self.fleet.now):
            self.worker.later(self.fleet.latency / 2, lambda: self.lease._on_notify(queue))

    def _end(self):
        self.has_ended = True
        self._listen(listen=False)

    def _listen(self, *, listen):
        if listen and not self.is_listening:
            self.fleet.store.backlogs._listeners.append(self.listener)
            self.lease._on_notify(ALL_QUEUES)
        elif not listen and self.is_listening:
            self.fleet.store.backlogs._listeners.remove(self.listener)
        self.is_listening = listen

    def _beat(self):
        """Renew the lease and listen for notifications, as the thread of the lease does, and schedule the next time."""
        if self.has_ended:
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
        delivery, job = task.request, task.request.job
        salt = f" {id(delivery)}" if is_duplicate else ""
        uid = hashlib.blake2b((delivery.message + salt).encode(), digest_size=14).digest()
        self.jobs[uid] = job
        max_wait_us = 0
        if job.max_wait is not None:
            waited = 0.0 if task.waiting_since is None else self.worker.time() - task.waiting_since
            max_wait_us = max(1, round((job.max_wait - waited) * SECOND))
        message = f"{self.fleet.jobs.index(job)} {task.waiting_since} {self.worker.seen_at(task)}".encode()
        lane = Lane(job.tenant or "", job.name, job.rank)
        return ParkedMessage(uid, lane, message, job.cost, max_wait_us, delivery.redelivered)

    def on_parked(self, task, position):
        delivery = task.request
        delivery.job.parked += position > 0
        self.acknowledged.append((self.fleet.now, delivery))
        self.worker.acknowledge(delivery)

    def receive(self, dispatched, on_end):
        index, since, seen_at = dispatched.message.decode().split()
        item, job = dispatched.owned.item, self.fleet.jobs[int(index)]
        job.dispatched += 1
        self.jobs[item.uid] = job
        delivery = self.worker.dispatched(job, item.redelivered, on_end)
        task = PendingTask(delivery, dispatched.owned.queue, self.worker.monotonic())
        task.waiting_since = None if since == "None" else float(since)
        task.seen_at = None if seen_at == "None" else int(seen_at)
        task.policy = ThrottlePolicy(self.worker.path(job))
        return task

    def end_unstarted(self, task):
        job = task.request.job
        try:
            check_cost(task.policy.path, job.cost)
            error = ThrottleTimeout("queue", self.worker.time() - task.waiting_since, job.max_wait)
        except ValueError as cost_error:
            error = cost_error
        self.worker.fail(task, error)
        return True
