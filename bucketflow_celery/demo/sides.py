"""The second act: a noisy tenant and a quiet one share a queue, once under retry and once under park. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from bucketflow_celery.demo.ledger import Ledger
from bucketflow_celery.demo.limits import NOISY, QUIET, SIDES, path_of
from bucketflow_celery.demo.workload import Order

__all__ = ["FEW", "FLOOD", "Side", "compare", "rival_orders"]

#: Tasks the noisy tenant sends to each side at once, and the quiet one some seconds later.
FLOOD, FEW, LATER = 160, 20, 1.5

_SENT = {NOISY: FLOOD, QUIET: FEW}

#: Seconds by which a busy machine may delay a tenant that gets its fair share.
SLACK = 1.0


@dataclass(frozen=True, slots=True)
class Side:
    """
    What became of the workload under one ``on_limit``.

    Attributes:
        on_limit: Which.
        began: When each tenant's first task was sent, by tenant.
        starts: When each of a tenant's tasks started first, by tenant, in the order of time.
        deliveries: Of a task to a worker, on average.
    """

    on_limit: str
    began: dict[str, float]
    starts: dict[str, list[float]]
    deliveries: float

    def done_after(self, tenant: str) -> float:
        """Return the seconds from a tenant's first sending to its last start; infinite while that is to come."""
        starts = self.starts[tenant]
        return starts[-1] - self.began[tenant] if len(starts) == _SENT[tenant] else math.inf

    def done(self, tenant: str) -> str:
        """Return :meth:`done_after` in words."""
        after = self.done_after(tenant)
        return f"after {after:.1f} s" if math.isfinite(after) else "never"

    @property
    def fair(self) -> float:
        """Seconds in which the quiet tenant would be done with half of what the queue grants."""
        (queue,) = path_of(QUIET, self.on_limit)
        return 2 * FEW / queue.limit.fill_rate

    @property
    def broken(self) -> list[str]:
        """The promise that was broken, in words; retry promises no fair share."""
        if self.on_limit != "park" or self.done_after(QUIET) <= self.fair + SLACK:
            return []
        return [f"with park tenant {QUIET} was done {self.done(QUIET)}, by its fair share after {self.fair:.1f} s"]


def rival_orders() -> list[Order]:
    """Return what is sent, by second: to both sides the same, in turns."""
    waves = ((0.0, NOISY), (LATER, QUIET))
    return [Order(at, tenant, side, 1.0) for at, tenant in waves for _ in range(_SENT[tenant]) for side in SIDES]


def compare(ledger: Ledger) -> list[Side]:
    """Return what has become of :func:`rival_orders` so far, side by side."""
    return [_side(ledger, on_limit) for on_limit in SIDES]


def _side(ledger: Ledger, on_limit: str) -> Side:
    sent = {tenant: dict(_sent(ledger, on_limit, tenant)) for tenant in (NOISY, QUIET)}
    began = {tenant: min(times.values(), default=0.0) for tenant, times in sent.items()}
    starts = {
        tenant: sorted(ledger.starts[id_][0] for id_ in ids if id_ in ledger.starts) for tenant, ids in sent.items()
    }
    (queue,) = path_of(QUIET, on_limit)
    return Side(on_limit, began, starts, ledger.per_task(queue))


def _sent(ledger: Ledger, on_limit: str, tenant: str) -> Iterator[tuple[str, float]]:
    for id_, (at, order) in ledger.sent.items():
        if (order.task, order.tenant) == (on_limit, tenant):
            yield id_, at
