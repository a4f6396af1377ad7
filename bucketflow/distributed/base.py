"""What the Redis buckets of threads and of coroutines have in common: where they are, and what a path of them is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from redis.crc import key_slot

from bucketflow.algorithm.gcra import FULL, Decision, initial_state, take
from bucketflow.clock import SYSTEM_CLOCK
from bucketflow.distributed.lease_monitor import AsyncLeaseMonitor, ThreadLeaseMonitor
from bucketflow.distributed.leased_path import LeasedPath
from bucketflow.distributed.path import RedisBucketRef, RedisPath
from bucketflow.distributed.polling_queue import AsyncPollingQueue, ThreadPollingQueue
from bucketflow.errors import ConfigError
from bucketflow.limit import Limit
from bucketflow.redis_client.runner import AsyncScriptRunner, ScriptRunner
from bucketflow.validation import check_cost, check_number

if TYPE_CHECKING:
    from bucketflow.clock import Clock
    from bucketflow.redis_client.private_clients import AsyncClient, Client

__all__ = ["RedisBucket", "stored_key"]

#: In front of every key the library writes.
PREFIX = "bucketflow:"

RunnerT = TypeVar("RunnerT", ScriptRunner, AsyncScriptRunner)
QueueT = TypeVar("QueueT", ThreadPollingQueue, AsyncPollingQueue)
MonitorT = TypeVar("MonitorT", ThreadLeaseMonitor, AsyncLeaseMonitor)


def stored_key(key: str, root_tag: str | None = None) -> tuple[str, bytes]:
    """
    Return the hash tag of a bucket, and the key under which Redis has it.

    A cluster keeps keys of one hash tag together, and a path must be together. So the root's key, or the tag inside
    it if it has one, is the tag of the whole tree: ``shop`` is stored as ``bucketflow:{shop}`` and ``acme`` below it
    as ``bucketflow:{shop}:acme``; ``{shop}:all`` as ``bucketflow:{shop}:all``.

    Args:
        key: As the user writes it.
        root_tag: The tag of the tree, ``None`` for its root.

    Raises:
        ConfigError: *key* is no text, is empty, has a brace that makes no tag, or has another tag than its root.
    """
    parts = key.replace("}", "{").split("{") if isinstance(key, str) else []
    tag = parts[1] if len(parts) == 3 and f"{{{parts[1]}}}" in key else ""  # noqa: PLR2004 - before, tag, after
    if not key or not (len(parts) == 1 or tag):
        raise ConfigError("key", key, 'a text without braces, or with one hash tag such as "{shop}:acme"')
    if root_tag is None:
        root_tag, own = tag or key, f"{{{key}}}"
    elif tag in ("", root_tag):
        own = f"{{{root_tag}}}:{key}"
    else:
        raise ConfigError("key", key, f'a text without a hash tag, or with that of its root, "{{{root_tag}}}"')
    return root_tag, f"{PREFIX}{key if tag else own}".encode()


class RedisBucket(Generic[RunnerT, QueueT, MonitorT]):
    """
    A bucket in Redis. Its subclasses ask, wait, and speak to users.

    Parameters and errors are those of :class:`bucketflow.distributed.RedisTokenBucket`.
    """

    #: The runners of each client, by timeout: its buckets share connections, and the last one leaves none behind.
    _runners: ClassVar[WeakKeyDictionary[Any, WeakValueDictionary[float, Any]]] = WeakKeyDictionary()
    _runner_class: type[RunnerT]
    _polling_queue_class: type[QueueT]
    _monitor_class: type[MonitorT]
    _polling_queue: QueueT
    _path: RedisPath
    _monitor: MonitorT | None
    _runner: RunnerT
    _tag: str
    _client: object
    _levels: tuple[RedisBucketRef, ...]

    def __init__(  # noqa: PLR0913 - the signature of 0.1.0, and what a whole path needs
        self,
        redis_client: Client | AsyncClient,
        key: str,
        capacity: float,
        fill_rate: float,
        initial_tokens: float | None = None,
        *,
        parent: Any = None,  # noqa: ANN401 - of the same class, checked below
        timeout: float = 1.0,
        lease: float | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if parent is not None and not isinstance(parent, type(self)):
            raise ConfigError("parent", parent, f"a {type(self).__name__} or None")
        if parent is not None and parent._client is not redis_client:  # noqa: SLF001 - its own kind
            raise ConfigError("redis_client", redis_client, "the parent's: a path is one call to one server")
        self.key: Final = key
        self.limit: Final = Limit(capacity, fill_rate)
        initial_state(self.limit, initial_tokens, 0)  # for its check: what time it is, the server says
        self._parent: Any = parent
        self._client = redis_client
        if lease is not None:
            check_number("lease", lease, "a number of tokens above 0, or None", above=True)
        self._tag, stored = stored_key(key, parent._tag if parent else None)  # noqa: SLF001
        self._slot = key_slot(stored)
        above: tuple[RedisBucketRef, ...] = parent._levels if parent else ()  # noqa: SLF001
        if any(level.key == stored for level in above):
            raise ConfigError("key", key, "another key than those above it: a bucket cannot be its own parent")
        start = 0.0 if initial_tokens is None else take(self.limit, FULL, 0, capacity - initial_tokens)
        self._levels = (*above, RedisBucketRef(stored, self.limit, start))
        self._runner = self._shared_runner(redis_client, timeout)
        if lease is None:
            self._path, self._monitor = RedisPath(self._levels), None
        else:
            self._path = path = LeasedPath(self._levels, lease, clock)
            self._monitor = self._monitor_class(path, self._runner)  # type: ignore[arg-type] # of the same half
        narrowest: Any = parent._narrowest if parent else self  # noqa: SLF001
        self._narrowest: Any = narrowest if narrowest.capacity <= capacity else self
        self._most: float = self._narrowest.capacity
        self._polling_queue = self._polling_queue_class(clock)

    @classmethod
    def _shared_runner(cls, client: Client | AsyncClient, timeout: float) -> RunnerT:
        try:
            runners = cls._runners.setdefault(client, WeakValueDictionary())
        except TypeError:  # whatever it is, the runner refuses it with a better word
            runners = WeakValueDictionary()
        runner: RunnerT | None = runners.get(timeout)
        if runner is None:
            runner = runners[timeout] = cls._runner_class(client, timeout)  # type: ignore[arg-type]
        return runner

    @property
    def parent(self) -> Any:  # noqa: ANN401 - of the same class
        """The bucket above, ``None`` at the root."""
        return self._parent

    @property
    def capacity(self) -> float:
        """Most tokens this bucket holds."""
        return self.limit.capacity

    @property
    def fill_rate(self) -> float:
        """Tokens per second of this bucket."""
        return self.limit.fill_rate

    def _cost(self, tokens: float) -> float:
        return check_cost(tokens, self._most, self._narrowest.key)

    def _behind(self, seen: Decision) -> Decision:
        """Return the refusal of one who may not overtake those who wait here. *seen*: what Redis would have said."""
        told = self._polling_queue.current_refusal()
        binding = len(self._levels) - 1 if seen.binding is None else seen.binding
        return Decision(False, max(seen.retry_after, told.retry_after), binding, seen.tokens)  # noqa: FBT003
