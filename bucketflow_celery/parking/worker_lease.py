"""
A worker's lease on the parked tasks dispatched to it.

A thread renews it, whatever the worker's loop waits for. The same thread reclaims the tasks of workers whose lease has
expired, and receives the notifications about queues whose backlog needs a worker.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable
from time import monotonic

from bucketflow.errors import StoreAccessDenied, StoreUnavailable
from bucketflow_celery.parking.in_flight_tasks import InFlightTasks
from bucketflow_celery.parking.stranded_queues import StrandedQueues
from bucketflow_celery.scheduling.model import Settlement
from bucketflow_celery.store.calls import WorkerContext
from bucketflow_celery.store.interfaces import ALL_QUEUES, BacklogStore, LeasedTaskView, Listener

__all__ = ["WorkerLease", "reclaim"]

logger = logging.getLogger("bucketflow_celery.parking")

#: Shares of the option ``lease``: how often the lease is renewed, and how long it lasts. The tasks of a killed worker
#: are reclaimed within their sum.
_RENEW_AFTER, _LASTS = 0.25, 0.7
#: Seconds before the store is called again after it did not answer.
_RETRY_PAUSE = 0.5
#: Seconds without a notification after which the worker subscribes anew: the connection may have been dropped silently.
_MAX_SILENCE = 30.0
#: Seconds that a task must be unknown to its worker before it is returned: the reply with it may be on its way.
_ORPHAN_AGE = 5.0


class WorkerLease:
    """
    Renews this worker's lease, reclaims tasks of expired leases, and listens for notifications.

    Args:
        context: What the components of the worker share.
        node: The worker's name. A name that no other lease has is made from it.
        in_flight_tasks: The tasks dispatched to this worker.
        on_notify: Called from the thread with the name of a queue whose backlog needs a worker, or ``ALL_QUEUES``.
        clock: Returns seconds; never steps.

    Attributes:
        worker: The name that the lease has now.
        in_flight_tasks: As given.
        stranded: Announces the queues of this worker with each renewal.
    """

    def __init__(
        self,
        context: WorkerContext,
        node: str,
        in_flight_tasks: InFlightTasks,
        on_notify: Callable[[str], None],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._backlogs: BacklogStore = context.store.backlogs
        self._seconds = context.settings.lease
        self._node = node
        self._on_notify = on_notify
        self._clock = clock
        self._valid_until = 0.0
        self._next_renewal = 0.0
        self._is_away = self._was_denied = self._has_warned = False
        self._orphans: dict[bytes, float] = {}
        self._renewing = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self.in_flight_tasks = in_flight_tasks
        self.stranded = StrandedQueues(self._backlogs)
        self.worker = self._new_name()

    def start(self) -> None:
        """Start the thread, unless it runs."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="bucketflow-lease", daemon=True)
            self._thread.start()

    def is_valid(self) -> bool:
        """Return whether no other worker can have reclaimed the tasks of this one."""
        return self._clock() < self._valid_until

    def release(self) -> None:
        """Stop, and return the tasks that this worker still has to their lanes at once."""
        self._stopped.set()
        self._valid_until = 0.0
        try:
            with self._renewing:
                self._backlogs.renew(self.worker, 0).run()
                self.stranded.withdraw(self.worker)
                reclaim(self._backlogs, self.worker)
        except StoreUnavailable as error:
            logger.warning("lease not released, its tasks are reclaimed when it expires: %s", error)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._renew_if_due()
                with self._backlogs.listen() as listener:
                    self._on_notify(ALL_QUEUES)  # for the notifications that came before
                    self._listen(listener)
            except StoreUnavailable as error:
                is_denied = isinstance(error, StoreAccessDenied)
                level = logging.ERROR if is_denied and not self._was_denied else logging.DEBUG
                self._was_denied = is_denied
                logger.log(level, "backlogs unavailable: %s", error)
                self._stopped.wait(_RETRY_PAUSE)
            except Exception:  # whatever it was: without a lease the worker's tasks would run twice
                if not self._stopped.is_set():  # else its connection was closed
                    logger.exception("lease renewal failed, trying again")
                self._stopped.wait(_RETRY_PAUSE)

    def _listen(self, listener: Listener) -> None:
        """Pass on notifications until there has been none for :data:`_MAX_SILENCE` seconds."""
        heard_at = self._clock()
        while not self._stopped.is_set() and self._clock() - heard_at < _MAX_SILENCE:
            queue = listener.get(max(0.001, min(1.0, self._next_renewal - self._clock())))
            if queue is not None:
                heard_at = self._clock()
                self._on_notify(queue)
            self._renew_if_due()

    def _renew_if_due(self) -> None:
        with self._renewing:
            now = self._clock()
            if now < self._next_renewal or self._stopped.is_set():
                return
            try:
                self._renew(now)
            except StoreUnavailable as error:
                if not (self._has_warned or isinstance(error, StoreAccessDenied)):
                    logger.warning("worker lease not renewed, trying again: worker=%s: %s", self.worker, error)
                self._has_warned = True
                raise
            self._has_warned = False

    def _renew(self, now: float) -> None:
        was_away, self._is_away = self._is_away or 0 < self._valid_until <= now, True
        had_lease, expired = self._backlogs.renew(self.worker, self._seconds * _LASTS).run()
        self._is_away = False
        if not had_lease and self._valid_until:
            logger.warning("worker lease expired, its tasks were reclaimed: worker=%s", self.worker)
            self._valid_until = 0.0
            self.worker = self._new_name()
            return
        self._valid_until = now + self._seconds * _LASTS  # from when it was asked for: others may count from then
        self._next_renewal = now + self._seconds * _RENEW_AFTER
        self._return_orphans(now)
        for worker in expired:
            # If this worker could not renew its lease in time, the others could not either: they get time to do so.
            if worker != self.worker and not was_away:
                count = reclaim(self._backlogs, worker)
                logger.warning("worker lease expired, tasks reclaimed: worker=%s tasks=%d", worker, count)
        self.stranded.check(self.worker)

    def _return_orphans(self, now: float) -> None:
        """Return tasks whose dispatch was in a reply that never arrived."""
        leased = self._backlogs.leased_tasks(self.worker).run()
        unknown = {one.uid: one for one in leased if not self.in_flight_tasks.has(one.uid)}
        self._orphans = {uid: self._orphans.get(uid, now) for uid in unknown}
        lost = [unknown[uid] for uid, since in self._orphans.items() if now - since >= _ORPHAN_AGE]
        _return_to_lanes(self._backlogs, self.worker, lost, is_expired=False)

    def _new_name(self) -> str:
        return f"{self._node}/{uuid.uuid4().hex[:12]}"


def reclaim(backlogs: BacklogStore, worker: str) -> int:
    """
    Return the tasks of a *worker* whose lease has expired to the front of their lanes.

    Returns:
        Their number.

    Raises:
        StoreUnavailable: The store did not answer in time; the remaining tasks can be reclaimed later.
    """
    return _return_to_lanes(backlogs, worker, backlogs.leased_tasks(worker).run(), is_expired=True)


def _return_to_lanes(backlogs: BacklogStore, worker: str, tasks: Iterable[LeasedTaskView], *, is_expired: bool) -> int:
    by_queue: defaultdict[str, list[LeasedTaskView]] = defaultdict(list)
    for task in sorted(tasks, key=lambda task: task.since):
        by_queue[task.queue].append(task)
    if is_expired and not by_queue:
        by_queue[ALL_QUEUES] = []  # the worker had no tasks, and is forgotten
    returned = 0
    for queue, leased in by_queue.items():
        tasks_back = tuple((task.uid, task.lane, is_expired) for task in leased)
        returned += backlogs.settle(queue, Settlement(worker, returned=tasks_back, reclaims=is_expired)).run()
    return returned
