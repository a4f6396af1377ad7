"""
Operations: what an operator sees of the running fleet, as plain values.

This package is the one core of every operations surface: the methods of :class:`~bucketflow_celery.Throttle` today, a
command line, a web page and metrics later. A surface only formats these values, so that all surfaces agree.
Explanations of a decision, overrides of limits and their history belong here, too.

Every function is pure: it takes what the store returned and does no I/O.
"""
