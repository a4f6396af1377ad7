"""Benchmarks, run from the root of the repository: ``python -m benchmarks.library`` and ``benchmarks.throttle``."""
