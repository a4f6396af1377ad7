"""Base class of the Redis buckets: keys, limits and path. The two subclasses add calls and waiting."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar, overload
from weakref import WeakKeyDictionary, WeakValueDictionary

from redis.crc import key_slot

from bucketflow.algorithm.gcra import Decision, initial_state
from bucketflow.clock import SYSTEM_CLOCK
from bucketflow.distributed.leased_path import LeasedPath
from bucketflow.distributed.path import RedisBucketRef, RedisPath
from bucketflow.distributed.polling_queue import AsyncPollingQueue, ThreadPollingQueue
from bucketflow.errors import ConfigError
from bucketflow.limit import Limit
from bucketflow.process_bound import ProcessBound
from bucketflow.redis_client.in_process import AsyncRunner, Runner
from bucketflow.redis_client.url_clients import shared_client
from bucketflow.script_host import ScriptHost
from bucketflow.validation import check_cost, check_number

if TYPE_CHECKING:
    from bucketflow.clock import Clock
    from bucketflow.redis_client.private_clients import AsyncClient, Client, Driver

__all__ = ["RedisBucket", "shared_runner", "stored_key"]

#: Prefix of every key that the library writes.
KEY_PREFIX = "bucketflow:"

RunnerT = TypeVar("RunnerT", Runner, AsyncRunner)

#: The runners of each client, by kind and timeout. The buckets own them: the last bucket leaves no connection behind.
_runners: WeakKeyDictionary[Any, WeakValueDictionary[tuple[Any, float], Any]] = WeakKeyDictionary()


def shared_runner(kind: Callable[[Any, float], RunnerT], client: Any, timeout: float) -> RunnerT:  # noqa: ANN401 - checked by the runner
    """Return the runner, made by *kind*, that all buckets with this *client* and *timeout* share."""
    try:
        runners = _runners.setdefault(client, WeakValueDictionary())
    except TypeError:  # not hashable, so not a client: the runner raises a ConfigError that says so
        runners = WeakValueDictionary()
    runner: RunnerT | None = runners.get((kind, timeout))
    if runner is None:
        runner = runners[kind, timeout] = kind(client, timeout)
    return runner


def stored_key(key: str, root_tag: str | None = None) -> tuple[str, bytes]:
    """
    Return the hash tag of a bucket, and its key in Redis.

    A Redis Cluster keeps keys with the same hash tag in one slot, which a path requires. So a whole tree has one tag:
    the root's key, or the tag inside that key. For example ``shop`` is stored as ``bucketflow:{shop}``, ``acme``
    below it as ``bucketflow:{shop}:acme``, and ``{shop}:all`` as ``bucketflow:{shop}:all``.

    Args:
        key: The key that the user gave.
        root_tag: The tag of the tree; ``None`` for its root.

    Raises:
        ConfigError: *key* is not a string, is empty, contains braces that form no tag, or a tag other than *root_tag*.
    """
    parts = key.replace("}", "{").split("{") if isinstance(key, str) else []
    tag = parts[1] if len(parts) == 3 and f"{{{parts[1]}}}" in key else ""  # noqa: PLR2004 - before, tag, after
    if not key or not (len(parts) == 1 or tag):
        raise ConfigError("key", key, 'a string without braces, or with one hash tag such as "{shop}:acme"')
    if root_tag is None:
        root_tag, own = tag or key, f"{{{key}}}"
    elif tag in ("", root_tag):
        own = f"{{{root_tag}}}:{key}"
    else:
        raise ConfigError("key", key, f'a string without a hash tag, or with that of its root, "{{{root_tag}}}"')
    return root_tag, f"{KEY_PREFIX}{key if tag else own}".encode()


class RedisBucket(ProcessBound, ABC):
    """
    A bucket in Redis, without the calls that evaluate it.

    Parameters and errors are those of :class:`bucketflow.distributed.RedisTokenBucket`.
    """

    _instead = "create a RedisTokenBucket or AsyncRedisTokenBucket with the same Redis and key in each process"

    _driver: ClassVar[Driver]
    _levels: tuple[RedisBucketRef, ...]
    _polling_queue: ThreadPollingQueue | AsyncPollingQueue
    _tag: str

    @overload
    def __init__(
        self,
        redis_client: Client | AsyncClient | ScriptHost,
        key: str,
        capacity: float,
        fill_rate: float,
        initial_tokens: float | None = None,
        *,
        parent: Any = None,  # noqa: ANN401 - of the same class
        timeout: float = 1.0,
        lease: float | None = None,
        clock: Clock | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self,
        *,
        url: str,
        key: str,
        capacity: float,
        fill_rate: float,
        initial_tokens: float | None = None,
        parent: Any = None,  # noqa: ANN401
        timeout: float = 1.0,
        lease: float | None = None,
        clock: Clock | None = None,
    ) -> None: ...

    def __init__(  # noqa: PLR0913
        self,
        redis_client: Any = None,
        key: str = "",
        capacity: float = 0.0,
        fill_rate: float = 0.0,
        initial_tokens: float | None = None,
        *,
        url: str | None = None,
        parent: Any = None,
        timeout: float = 1.0,
        lease: float | None = None,
        clock: Clock | None = None,
    ) -> None:
        if url is not None:
            if redis_client is not None:
                raise ConfigError("url", type(url), "either a client or a URL")
            redis_client = shared_client(self._driver, url)
        if parent is not None and not isinstance(parent, type(self)):
            raise ConfigError("parent", parent, f"a {type(self).__name__} or None")
        if parent is not None and parent._client is not redis_client:  # noqa: SLF001 - of the same class
            raise ConfigError("redis_client", redis_client, "the client of its parent: one call evaluates the path")
        self.key: Final = key
        self.limit: Final = Limit(capacity, fill_rate)
        self._parent: Any = parent
        self._client: Any = redis_client
        clock = clock or (redis_client.clock if isinstance(redis_client, ScriptHost) else SYSTEM_CLOCK)
        if lease is not None:
            lease = check_number("lease", lease, "a number of tokens above 0, or None", above=True)
        self._tag, stored = stored_key(key, parent._tag if parent else None)  # noqa: SLF001
        self._slot = key_slot(stored)
        ancestors: tuple[RedisBucketRef, ...] = parent._levels if parent else ()  # noqa: SLF001
        if any(level.key == stored for level in ancestors):
            raise ConfigError("key", key, "a key that no bucket above it has")
        deficit = initial_state(self.limit, initial_tokens, 0)  # from now: only the server knows the current time
        self._levels = (*ancestors, RedisBucketRef(stored, self.limit, deficit))
        self._leased_path = None if lease is None else LeasedPath(self._levels, lease, clock)
        self._path = self._leased_path or RedisPath(self._levels)
        smallest: Any = parent._smallest if parent else self  # noqa: SLF001
        self._smallest: Any = smallest if smallest.capacity <= self.capacity else self
        self._max_cost: float = self._smallest.capacity
        self._connect(timeout, clock)

    @abstractmethod
    def _connect(self, timeout: float, clock: Clock) -> None:
        """Set the runner, the queue of waiting callers, and the monitor of leased paths."""

    @property
    def parent(self) -> Any:  # noqa: ANN401 - of the same class
        """The bucket above, ``None`` at the root."""
        return self._parent

    @property
    def capacity(self) -> float:
        """Maximum number of tokens in this bucket."""
        return self.limit.capacity

    @property
    def fill_rate(self) -> float:
        """Tokens per second of this bucket."""
        return self.limit.fill_rate

    def _check_cost(self, tokens: float) -> float:
        return check_cost(tokens, self._max_cost, self._smallest.key)

    def _refuse_behind_waiters(self, state: Decision) -> Decision:
        """Return the refusal of a caller that must not overtake waiters; *state* is the decision without them."""
        refusal = self._polling_queue.current_refusal()
        binding = len(self._levels) - 1 if state.binding is None else state.binding
        return Decision(False, max(state.retry_after, refusal.retry_after), binding, state.tokens)  # noqa: FBT003
