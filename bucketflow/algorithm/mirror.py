"""The parts of the Lua mirror that come from Python: the shared constants, and the prelude that uses them."""

from __future__ import annotations

from bucketflow.algorithm.gcra import FULL, HALF_TICK
from bucketflow.limit import SECOND

__all__ = ["CONSTANTS", "EPOCH", "EXPIRY_STEP", "GCRA"]

#: Origin of every instant in Redis, in seconds since the Unix epoch: 2024-01-01 UTC. A double of today then resolves
#: 1/64 µs or finer; counted from 1970 it resolves 1/4 µs.
EPOCH = 1_704_067_200

#: µs to which the expiry of a bucket is rounded up, so that most writes may keep the expiry that is set.
EXPIRY_STEP = 100_000

#: Package and name of ``lua/gcra.lua``, the mirror of :mod:`bucketflow.algorithm.gcra`.
GCRA = ("bucketflow", "gcra")

#: Name and value of every constant that ``bucketflow/lua`` gets from Python. A frozenset computes its hash only once.
CONSTANTS: frozenset[tuple[str, float]] = frozenset(
    {
        "EPOCH": EPOCH,
        "EXPIRY_STEP": EXPIRY_STEP,
        "FULL": FULL,
        "HALF_TICK": HALF_TICK,
        "SECOND": SECOND,
    }.items()
)
