"""The Lua scripts of the store: their preludes, and the constants that they share with ``scheduling``."""

from __future__ import annotations

from functools import cache

from bucketflow.algorithm import mirror
from bucketflow.redis_client.scripts import Script, load_script
from bucketflow_celery.scheduling import admit, backlog, dispatch, leases, purges, serving

__all__ = ["BACKLOG", "CONSTANTS", "LEVEL", "backlog_script", "level_script"]

_PACKAGE = "bucketflow_celery.store"

#: Preludes of the scripts that work on levels.
LEVEL = (mirror.GCRA, (_PACKAGE, "level"))
#: Preludes of the scripts that work on a backlog.
BACKLOG = (*LEVEL, (_PACKAGE, "backlog"))

#: Name and value of every constant that the scripts get from Python.
CONSTANTS = mirror.CONSTANTS | frozenset(
    {
        "CHECK_INTERVAL": serving.CHECK_INTERVAL,
        "DEDUP_TTL": backlog.DEDUP_TTL,
        "LATE": admit.LATE,
        "MAX_EXPIRED": leases.MAX_EXPIRED,
        "MAX_PURGES": purges.MAX_PURGES,
        "MAX_TENANTS": dispatch.MAX_TENANTS,
        "NOTIFY_INTERVAL": backlog.NOTIFY_INTERVAL,
        "PAUSED_DELAY": dispatch.PAUSED_DELAY,
        "POLL_GRACE": backlog.POLL_GRACE,
        "POLL_TOLERANCE": backlog.POLL_TOLERANCE,
        "PURGE_TTL": purges.PURGE_TTL,
        "RECLAIMED": leases.RECLAIMED,
        "REPORT_INTERVAL": serving.REPORT_INTERVAL,
        "RESERVATION_GRACE": admit.RESERVATION_GRACE,
        "RESERVATION_TTL": admit.RESERVATION_TTL,
        "SPARE_TENANTS": dispatch.SPARE_TENANTS,
        "STRANDED_GRACE": serving.STRANDED_GRACE,
        "WAIVER": admit.WAIVER,
        "WORKERS_PER_POLL": dispatch.WORKERS_PER_POLL,
    }.items()
)


@cache
def level_script(name: str) -> Script:
    """Return the script *name*, which works on levels or on the fleet's limits."""
    return load_script(_PACKAGE, name, LEVEL, CONSTANTS)


@cache
def backlog_script(name: str) -> Script:
    """Return the script *name*, which works on the backlog of one queue."""
    return load_script(_PACKAGE, name, BACKLOG, CONSTANTS)
