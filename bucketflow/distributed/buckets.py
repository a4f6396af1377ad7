"""
Token buckets in Redis, shared by any number of processes: one script call and one round trip for a whole path.

The clock is the server's. A bucket's key expires when the bucket is full again, so an idle bucket costs no memory.
Address, credentials and TLS settings are the user's client's; timeouts and retries are not, see
:mod:`bucketflow.redis_client.private_clients`. Install ``bucketflow[distributed]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from bucketflow.algorithm.gcra import Decision
from bucketflow.distributed.base import RedisBucket, shared_runner
from bucketflow.distributed.lease_monitor import AsyncLeaseMonitor, ThreadLeaseMonitor, monitor_of
from bucketflow.distributed.polling_queue import AsyncPollingQueue, ThreadPollingQueue
from bucketflow.hierarchy_config import parse_hierarchy
from bucketflow.redis_client.batching import PathReply
from bucketflow.redis_client.in_process import AsyncRunner, Runner, async_runner_of, runner_of
from bucketflow.redis_client.private_clients import ASYNC, SYNC
from bucketflow.validation import check_timeout

if TYPE_CHECKING:
    from bucketflow.clock import Clock
    from bucketflow.redis_client.private_clients import AsyncClient, Client
    from bucketflow.script_host import ScriptHost

__all__ = [
    "AsyncRedisTokenBucket",
    "RedisTokenBucket",
    "create_async_redis_bucket_hierarchy",
    "create_redis_bucket_hierarchy",
]

BucketT = TypeVar("BucketT", bound=RedisBucket)


class RedisTokenBucket(RedisBucket):
    """
    A token bucket shared by every process that uses the same Redis and *key*. Thread-safe.

    Args:
        redis_client: ``redis.Redis``, also from a Sentinel, or ``redis.RedisCluster``. In tests
            :class:`bucketflow.testing.MemoryRedis`.
        key: Names the bucket within its tree, see :func:`bucketflow.distributed.base.stored_key`. Objects with one
            key may differ in their limit, as during a deploy: together they take no more than the largest allows.
        capacity: Maximum number of tokens: the burst.
        fill_rate: Tokens per second.
        initial_tokens: Tokens, 0 to *capacity*, that the bucket starts with if Redis does not have it at this object's
            first call; by default full. A bucket left unused for as long as it takes to fill is no longer in Redis.
        parent: The bucket above, with the same client. Each call must be granted by all buckets above, too.
        timeout: Seconds the server may take to reply.
        lease: Maximum number of tokens to lease in one call, which this object then spends without calls to Redis;
            ``None``: no leases. A lease decays as the bucket refills, so the limit holds in every window. Unspent
            tokens go back with the next call, on :meth:`close`, and after one to two idle seconds. Until then no other
            object can take them.
        url: A URL in place of *redis_client*, such as ``"redis://localhost/1"``,
            ``"sentinel://a;sentinel://b/1?master_name=m"`` or ``"redis+cluster://a"``.
        clock: Measures and sleeps waiting time, and measures the decay of leases; by default the system's, or that of
            a ``MemoryRedis``. The buckets' time is the server's.

    Raises:
        ConfigError: A number is not one, or out of its range; *key*, *parent* or *redis_client* cannot work.
    """

    _driver = SYNC
    _runner: Runner
    _polling_queue: ThreadPollingQueue
    _monitor: ThreadLeaseMonitor

    def _connect(self, timeout: float, clock: Clock) -> None:
        self._runner = shared_runner(runner_of, self._client, timeout)
        self._polling_queue = ThreadPollingQueue(clock)
        self._monitor = monitor_of(ThreadLeaseMonitor, self._runner)

    @property
    def tokens(self) -> float:
        """Tokens in this bucket now; the buckets above may hold fewer. Raises :class:`StoreUnavailable`."""
        return self._peek(0.0).tokens[-1]

    def consume(self, tokens: float = 1, block: bool = False, timeout: float | None = None) -> bool:  # noqa: FBT001, FBT002 - the signature of 0.1.0
        """
        Take *tokens* from this bucket and from every bucket above it, or from none.

        Callers that block on one object are served in order of arrival, and no other call through it overtakes them.
        Between objects and processes the order is that in which Redis receives the calls.

        Args:
            tokens: Number of tokens; 0 takes none.
            block: Whether to wait for them.
            timeout: Maximum wait in seconds; ``None``: unlimited. A longer wait is refused at once. The server's time
                to reply is not included.

        Returns:
            Whether the tokens were taken.

        Raises:
            ConfigError: *tokens* or *timeout* is not a number of 0 or more, or *timeout* is given without *block*.
            CostExceedsCapacity: *tokens* exceeds the capacity of a bucket on the path; names the one with the least.
            StoreUnavailable: Redis did not reply in time, or replied with an error. Whether the tokens were taken is
                unknown; no call is repeated.
        """
        if timeout is not None:
            timeout = check_timeout(timeout, block=block)
        cost = tokens
        if (type(tokens) is not int and type(tokens) is not float) or not 0 <= tokens <= self._max_cost:
            cost = self._check_cost(tokens)  # raises the error that says what is wrong
        if not (cost and self._polling_queue.waiters and self._polling_queue.has_waiters()):
            if cost and self._path.try_spend(cost):
                return True
            if not block:
                return self._request(cost)[0] == 0
        return block and self._polling_queue.wait(lambda: self._path.decision(self._request(cost)), timeout).allowed

    def try_consume(self, tokens: float = 1) -> Decision:
        """
        Take *tokens* now or not at all, and return the whole decision.

        Returns:
            The decision for the path, root first; ``retry_after`` in seconds.

        Raises:
            ConfigError, CostExceedsCapacity, StoreUnavailable: See :meth:`consume`.
        """
        cost = self._check_cost(tokens)
        if cost and self._polling_queue.has_waiters():
            return self._refuse_behind_waiters(self._peek(cost))
        return self._path.decision(self._request(cost))

    def wait_time(self, tokens: float = 1) -> float:
        """Return the seconds until *tokens* are there if no other caller takes any. Raises as :meth:`consume` does."""
        return self._peek(self._check_cost(tokens)).retry_after

    def refund(self, tokens: float = 1) -> None:
        """
        Return *tokens* to every bucket of the path, up to its capacity. Raises as :meth:`consume` does.

        While other objects hold leases on a bucket it may accept less: it must not be full before those have decayed.
        """
        for call in self._path.refund(self._check_cost(tokens)):
            self._runner.run_call(call)
        self._polling_queue.wake_head()

    def close(self) -> None:
        """
        Return leased tokens, and close the connections that all buckets of this client share.

        The next call opens new ones. If Redis does not reply, leased tokens decay and so return to the bucket.
        """
        if self._leased_path is not None:
            self._monitor.close(self._leased_path)
        self._runner.close()

    def _request(self, cost: float) -> PathReply:
        reply = self._path.answer_locally(cost)
        if reply is None:
            reply = self._runner.batcher(self._slot).submit(self._path, cost)
        if self._leased_path is not None:
            self._monitor.watch(self._leased_path)
        return reply

    def _peek(self, cost: float) -> Decision:
        return self._path.decision(self._request(-cost))


class AsyncRedisTokenBucket(RedisBucket):
    """
    :class:`RedisTokenBucket` for coroutines: every method is awaited, and ``get_tokens()`` replaces ``tokens``.

    Parameters and errors are the same, but *redis_client* is ``redis.asyncio.Redis``, ``redis.asyncio.RedisCluster`` or
    ``MemoryRedis``.
    A coroutine that is cancelled while waiting has spent nothing. Cancelled during a call, it may have spent tokens.
    """

    _driver = ASYNC
    _runner: AsyncRunner
    _polling_queue: AsyncPollingQueue
    _monitor: AsyncLeaseMonitor

    def _connect(self, timeout: float, clock: Clock) -> None:
        self._runner = shared_runner(async_runner_of, self._client, timeout)
        self._polling_queue = AsyncPollingQueue(clock)
        self._monitor = monitor_of(AsyncLeaseMonitor, self._runner)

    async def get_tokens(self) -> float:
        """See :attr:`RedisTokenBucket.tokens`."""
        return (await self._peek(0.0)).tokens[-1]

    async def consume(self, tokens: float = 1, block: bool = False, timeout: float | None = None) -> bool:  # noqa: FBT001, FBT002 - as in RedisTokenBucket
        """See :meth:`RedisTokenBucket.consume`."""
        if timeout is not None:
            timeout = check_timeout(timeout, block=block)
        cost = tokens
        if (type(tokens) is not int and type(tokens) is not float) or not 0 <= tokens <= self._max_cost:
            cost = self._check_cost(tokens)  # raises the error that says what is wrong
        if not (cost and self._polling_queue.waiters and self._polling_queue.has_waiters()):
            if cost and self._path.try_spend(cost):
                return True
            if not block:
                return (await self._request(cost))[0] == 0
        return block and (await self._polling_queue.wait(lambda: self._decide(cost), timeout)).allowed

    async def try_consume(self, tokens: float = 1) -> Decision:
        """See :meth:`RedisTokenBucket.try_consume`."""
        cost = self._check_cost(tokens)
        if cost and self._polling_queue.has_waiters():
            return self._refuse_behind_waiters(await self._peek(cost))
        return await self._decide(cost)

    async def wait_time(self, tokens: float = 1) -> float:
        """See :meth:`RedisTokenBucket.wait_time`."""
        return (await self._peek(self._check_cost(tokens))).retry_after

    async def refund(self, tokens: float = 1) -> None:
        """See :meth:`RedisTokenBucket.refund`."""
        for call in self._path.refund(self._check_cost(tokens)):
            await self._runner.run_call(call)
        self._polling_queue.wake_head()

    async def close(self) -> None:
        """See :meth:`RedisTokenBucket.close`; closes the connections of this event loop."""
        if self._leased_path is not None:
            await self._monitor.close(self._leased_path)
        await self._runner.close()

    async def _request(self, cost: float) -> PathReply:
        reply = self._path.answer_locally(cost)
        if reply is None:
            reply = await self._runner.batcher(self._slot).submit(self._path, cost)
        if self._leased_path is not None:
            self._monitor.watch(self._leased_path)
        return reply

    async def _decide(self, cost: float) -> Decision:
        return self._path.decision(await self._request(cost))

    async def _peek(self, cost: float) -> Decision:
        return await self._decide(-cost)


def create_redis_bucket_hierarchy(
    redis_client: Client | ScriptHost, config: Mapping[str, object], *, timeout: float = 1.0, lease: float | None = None
) -> dict[str, RedisTokenBucket]:
    """
    Create a tree of buckets in Redis from nested mappings. Each name is the bucket's key.

    Args:
        redis_client: See :class:`RedisTokenBucket`.
        config: See :func:`bucketflow.hierarchical.create_bucket_hierarchy`.
        timeout: See :class:`RedisTokenBucket`.
        lease: See :class:`RedisTokenBucket`; applies to each bucket.

    Returns:
        Every bucket by its name, parents before their children.

    Raises:
        ConfigError: See :func:`bucketflow.hierarchical.create_bucket_hierarchy`; or a name cannot be a key.
    """
    return _hierarchy(RedisTokenBucket, redis_client, config, timeout=timeout, lease=lease)


def create_async_redis_bucket_hierarchy(
    redis_client: AsyncClient | ScriptHost,
    config: Mapping[str, object],
    *,
    timeout: float = 1.0,
    lease: float | None = None,
) -> dict[str, AsyncRedisTokenBucket]:
    """Create a tree of :class:`AsyncRedisTokenBucket`, see :func:`create_redis_bucket_hierarchy`."""
    return _hierarchy(AsyncRedisTokenBucket, redis_client, config, timeout=timeout, lease=lease)


def _hierarchy(
    kind: Callable[..., BucketT],
    client: Client | AsyncClient | ScriptHost,
    config: Mapping[str, Any],
    **options: Any,  # noqa: ANN401 - the constructor's
) -> dict[str, BucketT]:
    buckets: dict[str, BucketT] = {}
    for entry in parse_hierarchy(config):
        parent = None if entry.parent is None else buckets[entry.parent]
        numbers = (entry.limit.capacity, entry.limit.fill_rate, entry.initial_tokens)
        buckets[entry.name] = kind(client, entry.name, *numbers, parent=parent, **options)
    return buckets
