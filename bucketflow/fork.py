"""Reset of locks, waiters, connections, in-flight calls and token leases in a forked child."""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet

__all__ = ["ForkAware", "reset_after_fork"]


class ForkAware(Protocol):
    """An object with state that a forked child must not share with its parent."""

    def after_fork(self) -> None:
        """Reset the state, in the child. Must not block: no other thread exists there that could release a lock."""


_aware: WeakSet[ForkAware] = WeakSet()


def reset_after_fork(aware: ForkAware) -> None:
    """Call ``after_fork`` of *aware* in every child forked from now on. Holds only a weak reference."""
    _aware.add(aware)


def _after_fork() -> None:
    for aware in list(_aware):
        aware.after_fork()


if hasattr(os, "register_at_fork"):  # not on platforms without fork
    os.register_at_fork(after_in_child=_after_fork)
