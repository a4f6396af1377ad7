"""The throttle under load, measured on real workers: ``rate_limits``, ``fairness`` and ``backlog``."""
