"""A worker's lease on the parked tasks dispatched to it, renewed from a thread of its own."""

from __future__ import annotations

import logging
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable
from time import monotonic

from bucketflow.errors import StoreUnavailable
from bucketflow_celery.scheduling.model import Settlement
from bucketflow_celery.store.interfaces import ALL_QUEUES, BacklogStore, LeasedTaskView

__all__ = ["Lease", "reclaim"]

logger = logging.getLogger(__name__)

#: Shares of the lease after which it is renewed, and for which it is: so whoever dies is missed within one lease.
_RENEW, _HOLD = 0.25, 0.7
#: Seconds before the store is asked again that did not answer.
_AGAIN = 0.5
#: Seconds for which a task must look like nobody's before it is given back: its hand-over may be on the way.
_ORPHAN = 5.0


class Lease:
    """
    Keeps a worker alive in the eyes of the others, takes back the tasks of those who are dead, and listens for calls.

    Args:
        store: Where the backlogs live.
        node: The worker's name; one that no other lease has is made from it.
        seconds: Within which the tasks of a dead worker go to another.
        on_call: Called from the thread with the name of a queue in which there is something to do.
        is_known: Whether the worker knows that it was dispatched a task, by its uid.
        clock: Tells seconds; never steps.
    """

    def __init__(  # noqa: PLR0913 - its seams, each given by name
        self,
        store: BacklogStore,
        node: str,
        seconds: float,
        *,
        on_call: Callable[[str], None],
        is_known: Callable[[bytes], bool],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._store = store
        self._node = node
        self._seconds = seconds
        self._on_call = on_call
        self._is_known = is_known
        self._clock = clock
        self._until = 0.0
        self._next_renewal = 0.0
        self._is_away = False
        self._orphans: dict[bytes, float] = {}
        self._renewing = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self.worker = self._new_name()

    def start(self) -> None:
        """Start the thread, unless it runs."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="bucketflow-lease", daemon=True)
            self._thread.start()

    def holds(self) -> bool:
        """Return whether nobody can have taken this worker for dead."""
        return self._clock() < self._until

    def leave(self) -> None:
        """Stop, and give back at once what the worker still has."""
        self._stopped.set()
        self._until = 0.0
        try:
            with self._renewing:
                self._store.renew(self.worker, 0).run()
                reclaim(self._store, self.worker)
        except StoreUnavailable as error:
            logger.warning("what this worker was dispatched goes to others when its lease has ended: %s", error)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._renew_if_due()
                with self._store.listen() as calls:
                    self._on_call(ALL_QUEUES)  # those before it was listening
                    while not self._stopped.is_set():
                        call = calls.get(max(0.001, min(1.0, self._next_renewal - self._clock())))
                        if call is not None:
                            self._on_call(call)
                        self._renew_if_due()
            except StoreUnavailable as error:
                logger.debug("the backlogs cannot be reached: %s", error)
                self._stopped.wait(_AGAIN)
            except Exception:  # whatever it was, without a lease the worker's tasks would run twice
                if not self._stopped.is_set():  # else its connection was closed
                    logger.exception("the lease on parked tasks goes on after")
                self._stopped.wait(_AGAIN)

    def _renew_if_due(self) -> None:
        with self._renewing:
            now = self._clock()
            if now >= self._next_renewal and not self._stopped.is_set():
                self._renew(now)

    def _renew(self, now: float) -> None:
        was_away, self._is_away = self._is_away or 0 < self._until <= now, True
        was_known, dead = self._store.renew(self.worker, self._seconds * _HOLD).run()
        self._is_away = False
        if not was_known and self._until:
            logger.warning("%s was taken for dead, its parked tasks went to others", self.worker)
            self._until = 0.0
            self.worker = self._new_name()
            return
        self._until = now + self._seconds * _HOLD  # from when it was asked for: later than that others may count
        self._next_renewal = now + self._seconds * _RENEW
        self._give_back_orphans(now)
        for worker in dead:
            # If this one could not renew its lease in time, the others could not either: they get the time to do so.
            if worker != self.worker and not was_away:
                logger.warning("%s is dead, %d parked task(s) go to others", worker, reclaim(self._store, worker))

    def _give_back_orphans(self, now: float) -> None:
        """Give back what was dispatched out in an answer that never came."""
        unknown = {one.uid: one for one in self._store.owned(self.worker).run() if not self._is_known(one.uid)}
        self._orphans = {uid: self._orphans.get(uid, now) for uid in unknown}
        lost = [unknown[uid] for uid, since in self._orphans.items() if now - since >= _ORPHAN]
        _return(self._store, self.worker, lost, dead=False)

    def _new_name(self) -> str:
        return f"{self._node}/{uuid.uuid4().hex[:12]}"


def reclaim(store: BacklogStore, worker: str) -> int:
    """
    Take its tasks from a *worker* whose lease has ended, and put them back in front of their lanes.

    Returns:
        How many that were.

    Raises:
        StoreUnavailable: The store did not answer in time; what is left can be taken later.
    """
    return _return(store, worker, store.owned(worker).run(), dead=True)


def _return(store: BacklogStore, worker: str, tasks: Iterable[LeasedTaskView], *, dead: bool) -> int:
    by_queue: defaultdict[str, list[LeasedTaskView]] = defaultdict(list)
    for task in sorted(tasks, key=lambda task: task.since):
        by_queue[task.queue].append(task)
    if dead and not by_queue:
        by_queue[ALL_QUEUES] = []  # it had nothing, and is forgotten
    returned = 0
    for queue, mine in by_queue.items():
        back = tuple((task.uid, task.lane, dead) for task in mine)
        returned += store.settle(queue, Settlement(worker, returned=back, dead=dead)).run()
    return returned
