"""Interface of an object that evaluates the scripts of the Redis buckets itself, in place of a server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from bucketflow.clock import Clock

__all__ = ["ScriptHost"]


class ScriptHost(ABC):
    """
    Takes the place of a Redis client. ``bucketflow.testing.MemoryRedis`` implements it.

    Attributes:
        clock: The clock of the stored buckets. Buckets that were given no clock wait by it.
    """

    clock: Clock

    @abstractmethod
    def run_script(self, name: str, keys: Sequence[bytes], args: Sequence[str | bytes]) -> Any:  # noqa: ANN401 - depends on the script
        """Run the script *name* of ``bucketflow/lua`` at once, and return its reply. Thread-safe."""
