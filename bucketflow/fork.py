"""What must forget its parent's affairs in a forked child: connections, calls under way, tokens on lease."""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet

__all__ = ["ForkAware", "reset_after_fork"]


class ForkAware(Protocol):
    """Something that a forked child must not go on with."""

    def after_fork(self) -> None:
        """Begin anew, in the child. Must not block: nobody else is there to release a lock."""


_aware: WeakSet[ForkAware] = WeakSet()


def reset_after_fork(aware: ForkAware) -> None:
    """Have *aware* told in every child that is forked from here on, for as long as it lives."""
    _aware.add(aware)


def _after_fork() -> None:
    for aware in list(_aware):
        aware.after_fork()


if hasattr(os, "register_at_fork"):  # not where there are no forks
    os.register_at_fork(after_in_child=_after_fork)
