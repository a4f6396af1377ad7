"""
Worker leases: which tasks were dispatched to which worker, and what becomes of them.

A worker holds the tasks that were dispatched to it until it settles them, and renews its lease meanwhile. When a lease
expires, another worker reclaims the tasks: they return to the front of their lanes.

``store/lua/renew_lease.lua`` and ``settle.lua`` mirror this file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import MutableMapping
from dataclasses import replace

from bucketflow_celery.scheduling.admit import LevelState
from bucketflow_celery.scheduling.backlog import Backlog, refund_path
from bucketflow_celery.scheduling.model import LeasedTask, Settlement

__all__ = ["MAX_EXPIRED", "RECLAIMED", "Leases", "settle"]

#: Most workers named by one renewal.
MAX_EXPIRED = 16
#: In place of the expiry of a lease: the tasks of the worker are being reclaimed, and it cannot renew any more.
RECLAIMED = -1


class Leases:
    """
    Registry of the workers' leases.

    Attributes:
        workers: The µs at which the lease of each worker expires, or ``RECLAIMED``.
        owned: The tasks that each worker holds, by uid.
    """

    def __init__(self) -> None:
        self.workers: dict[str, int] = {}
        self.owned: defaultdict[str, dict[bytes, LeasedTask]] = defaultdict(dict)

    def renew(self, worker: str, duration: int, now: int) -> tuple[bool, list[str]]:
        """
        Renew the lease of *worker*, unless its tasks are being reclaimed.

        Args:
            worker: Name of the worker.
            duration: µs until the lease expires.
            now: µs of the store's clock.

        Returns:
            Whether it had a lease; and at most ``MAX_EXPIRED`` workers whose lease has expired, the earliest first.
        """
        expires_at = self.workers.get(worker, 0)
        if expires_at >= 0:
            self.workers[worker] = now + duration
        expired = sorted((at, name.encode()) for name, at in self.workers.items() if at <= now)
        return expires_at > 0, [name.decode() for _, name in expired[:MAX_EXPIRED]]

    def start_reclaim(self, worker: str, now: int) -> bool:
        """End the lease of *worker* for good if it has expired; return whether it has."""
        if self.workers.get(worker, RECLAIMED) > now:
            return False
        self.workers[worker] = RECLAIMED
        return True


def settle(
    backlog: Backlog, settlement: Settlement, leases: Leases, states: MutableMapping[str, LevelState], now: int
) -> tuple[int, bool]:
    """
    Apply *settlement* to tasks of one queue. A task that the worker no longer holds is left alone.

    Args:
        backlog: Backlog of the queue.
        settlement: What became of the tasks. If it reclaims them, it has no effect before the lease has expired.
        leases: The leases of all workers.
        states: State of each level by key.
        now: µs of the store's clock.

    Returns:
        How many tasks returned to their lanes; and whether to notify the workers.
    """
    worker = settlement.worker
    if settlement.reclaims:
        if not leases.start_reclaim(worker, now):
            return 0, False
        backlog.polls.pop(worker, None)
    owned = leases.owned[worker]
    for uid in settlement.ended:
        if owned.pop(uid, None) is not None:  # else it was reclaimed, and belongs to another worker
            del backlog.messages[uid]
    for uid in settlement.confirmed:
        backlog.dedup.pop(uid, None)
    returned = 0
    for uid, _, may_have_started in reversed(settlement.returned):  # each goes in front of the previous one
        one = owned.pop(uid, None)
        if one is not None:
            item = replace(one.item, redelivered=one.item.redelivered or may_have_started)
            backlog.return_to_front(replace(one, item=item))
            returned += 1
    notify = returned > 0 and backlog.should_notify(now, now)
    for refund in settlement.refunds:
        refund_path(refund.path, refund.cost, states, now)
        backlog.refund_turn(refund.tenant, refund.share)
    if settlement.reclaims and not owned:
        del leases.workers[worker], leases.owned[worker]
    return returned, notify
