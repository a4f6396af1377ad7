"""
Kombu messages: encoding of a parked message, queue of origin, republication with an ETA, tenant stamp.

:mod:`codec` and :mod:`origin` are pure: they transform messages and do no I/O.
"""
