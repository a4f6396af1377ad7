"""Where everything the demo writes is: a Redis server, and a prefix that keeps it apart from what is there already."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

__all__ = ["Place"]

_URL, _NAMESPACE = "BUCKETFLOW_DEMO_URL", "BUCKETFLOW_DEMO_NAMESPACE"


@dataclass(frozen=True, slots=True)
class Place:
    """
    A namespace on a server.

    Attributes:
        url: The Redis server and its database.
        namespace: What every key begins with, in braces.
    """

    url: str
    namespace: str

    @classmethod
    def new(cls, url: str) -> Place:
        """Return a place at *url* that nobody else uses."""
        return cls(url, f"bucketflow-demo-{os.urandom(4).hex()}")

    @property
    def prefix(self) -> str:
        """What every key begins with."""
        return f"{{{self.namespace}}}:"

    def environment(self) -> dict[str, str]:
        """Return what tells a worker."""
        return {_URL: self.url, _NAMESPACE: self.namespace}

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Place | None:
        """Return what :meth:`environment` wrote, if anything."""
        return cls(environment[_URL], environment[_NAMESPACE]) if _URL in environment else None

    def clear(self) -> None:
        """
        Delete what was written there, and nothing else.

        Raises:
            RedisError: The server does not answer.
        """
        with Redis.from_url(self.url, socket_timeout=5, retry=Retry(NoBackoff(), 0)) as client:
            for key in list(client.scan_iter(match=f"{self.prefix}*", count=1000)):
                client.unlink(key)
