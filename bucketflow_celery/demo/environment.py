"""The Redis server and the key namespace of one demo run, which the workers receive by environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

__all__ = ["Environment"]

_URL, _NAMESPACE = "BUCKETFLOW_DEMO_URL", "BUCKETFLOW_DEMO_NAMESPACE"


@dataclass(frozen=True, slots=True)
class Environment:
    """
    A key namespace on a Redis server.

    Attributes:
        url: The server and its database.
        namespace: The hash tag of every key.
    """

    url: str
    namespace: str

    @classmethod
    def new(cls, url: str) -> Environment:
        """Return an environment at *url* with a random namespace."""
        return cls(url, f"bucketflow-demo-{os.urandom(4).hex()}")

    @property
    def prefix(self) -> str:
        """The prefix of every key."""
        return f"{{{self.namespace}}}:"

    def variables(self) -> dict[str, str]:
        """Return the environment variables that pass this environment to a worker."""
        return {_URL: self.url, _NAMESPACE: self.namespace}

    @classmethod
    def from_variables(cls, variables: Mapping[str, str]) -> Environment | None:
        """Return the environment that :meth:`variables` wrote; ``None`` without it."""
        return cls(variables[_URL], variables[_NAMESPACE]) if _URL in variables else None

    def delete_keys(self) -> None:
        """
        Delete all keys of the namespace and no others.

        Raises:
            RedisError: The server does not reply.
        """
        with Redis.from_url(self.url, socket_timeout=5, retry=Retry(NoBackoff(), 0)) as client:
            for key in list(client.scan_iter(match=f"{self.prefix}*", count=1000)):
                client.unlink(key)
