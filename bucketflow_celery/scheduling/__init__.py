"""
Scheduling: which task may start when. Pure: no clock, no lock, no I/O, no Celery.

``admit`` decides about tasks in a worker, ``backlog`` and ``dispatch`` about parked tasks, ``leases`` about dispatched
ones. ``store/lua`` mirrors all four for Redis. Property tests compare both sides bit for bit.
"""
