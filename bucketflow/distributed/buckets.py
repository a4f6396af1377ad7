"""
Token buckets that a fleet shares through Redis: the server's clock, one script and one round trip a path.

Install ``bucketflow[distributed]``. A bucket's key expires when it is full again, so an idle bucket costs no memory.
Address, credentials and TLS come from the user's client; its timeouts and retries do not, see
:mod:`bucketflow.redis_client.private_clients`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from bucketflow.algorithm.gcra import Decision
from bucketflow.distributed.base import RedisBucket
from bucketflow.distributed.lease_monitor import AsyncLeaseMonitor, ThreadLeaseMonitor
from bucketflow.distributed.polling_queue import AsyncPollingQueue, ThreadPollingQueue
from bucketflow.hierarchy_config import parse_hierarchy
from bucketflow.redis_client.batching import Answer
from bucketflow.redis_client.runner import AsyncScriptRunner, ScriptRunner
from bucketflow.validation import check_timeout

if TYPE_CHECKING:
    from bucketflow.redis_client.private_clients import AsyncClient, Client

__all__ = [
    "AsyncRedisTokenBucket",
    "RedisTokenBucket",
    "create_async_redis_bucket_hierarchy",
    "create_redis_bucket_hierarchy",
]

BucketT = TypeVar("BucketT", bound=RedisBucket[Any, Any, Any])


class RedisTokenBucket(RedisBucket[ScriptRunner, ThreadPollingQueue, ThreadLeaseMonitor]):
    """
    A token bucket that every process with the same Redis and *key* shares. Threads may share the object.

    Args:
        redis_client: ``redis.Redis``, also from a Sentinel, or ``redis.RedisCluster``.
        key: Names the bucket within its tree, see :func:`bucketflow.distributed.base.stored_key`. Whoever uses it
            should give it the same limit.
        capacity: Most tokens it holds: the burst.
        fill_rate: Tokens per second.
        initial_tokens: Tokens, 0 to *capacity*, if Redis has no such bucket when this object first asks; by default
            full. One that nobody has used for as long as it takes to fill is no longer there.
        parent: The bucket above, with the same client; every call must pass that one, and those above it, too.
        timeout: Seconds the server may take to answer.
        lease: Tokens to take ahead in one call, at most, to be spent by this object without asking; ``None``: none.
            They fade as the bucket refills, so the limit holds in every window. What is not spent goes back with the
            next call, on :meth:`close`, and after a second or two in which nobody came; until then nobody else has it.
        clock: What waiting is slept with, and what leases fade by. What time it is, the server says.

    Raises:
        ConfigError: A number is not one, or out of its range; *key*, *parent* or *redis_client* cannot work.
    """

    _runner_class = ScriptRunner
    _polling_queue_class = ThreadPollingQueue
    _monitor_class = ThreadLeaseMonitor

    @property
    def tokens(self) -> float:
        """Tokens in this bucket now; those above it may hold fewer. Raises :class:`StoreUnavailable`."""
        return self._look(0.0).tokens[-1]

    def consume(self, tokens: float = 1, block: bool = False, timeout: float | None = None) -> bool:  # noqa: FBT001, FBT002 - the signature of 0.1.0
        """
        Take *tokens* from this bucket and from every one above it, or from none.

        Those who block on one object are served in the order in which they came, and nobody overtakes them through
        it; between objects and processes it is as Redis hears them.

        Args:
            tokens: How many; 0 only looks.
            block: Whether to wait for them.
            timeout: Seconds to wait at most; ``None``: as long as it takes. Whoever would wait longer is refused at
                once. The server's own time to answer comes on top.

        Returns:
            Whether they were taken.

        Raises:
            ConfigError: *tokens* or *timeout* is no number of 0 or more, or *timeout* is given without *block*.
            CostExceedsCapacity: More than a bucket on the path can ever hold; it names the one that holds least.
            StoreUnavailable: Redis did not answer in time, or with an error. Whether the tokens were taken is
                unknown; nothing is asked twice.
        """
        if timeout is not None:
            check_timeout(timeout, block=block)
        cost = tokens
        if (type(tokens) is not int and type(tokens) is not float) or not 0 <= tokens <= self._most:
            cost = self._cost(tokens)  # says what is wrong
        if not (cost and self._polling_queue.line and self._polling_queue.is_busy()):
            lease = self._path.newest
            if lease is not None and cost and self._path.spend(lease, cost):
                return True
            if not block:
                return self._ask(cost)[0] == 0
        return block and self._polling_queue.wait(lambda: self._path.decision(self._ask(cost)), timeout).allowed

    def try_consume(self, tokens: float = 1) -> Decision:
        """
        Take *tokens* now or not at all, and say what there was to say.

        Returns:
            The decision over the path, root first; ``retry_after`` in seconds.

        Raises:
            ConfigError, CostExceedsCapacity, StoreUnavailable: As :meth:`consume` does.
        """
        cost = self._cost(tokens)
        if cost and self._polling_queue.is_busy():
            return self._behind(self._look(cost))
        return self._path.decision(self._ask(cost))

    def wait_time(self, tokens: float = 1) -> float:
        """Return the seconds until *tokens* are there if nobody else takes any. Raises as :meth:`consume` does."""
        return self._look(self._cost(tokens)).retry_after

    def refund(self, tokens: float = 1) -> None:
        """
        Give *tokens* back to every bucket of the path, at most to its capacity. Raises as :meth:`consume`.

        While others have tokens of a bucket on lease it may take less, so that it is not full before those have faded.
        """
        for call in self._path.refund(self._cost(tokens)):
            self._runner.run_call(call)
        self._polling_queue.wake_head()

    def close(self) -> None:
        """
        Give back what is on lease, and close the connections that all buckets of this client share.

        The next call opens new ones. If Redis does not answer, what is on lease is left to fade.
        """
        if self._monitor is not None:
            self._monitor.close()
        self._runner.close()

    def _ask(self, cost: float) -> Answer:
        answer = self._path.answer_locally(cost)
        if answer is None:
            answer = self._runner.batcher(self._slot).submit(self._path, cost)
        if self._monitor is not None:
            self._monitor.wake()
        return answer

    def _look(self, cost: float) -> Decision:
        return self._path.decision(self._ask(-cost))


class AsyncRedisTokenBucket(RedisBucket[AsyncScriptRunner, AsyncPollingQueue, AsyncLeaseMonitor]):
    """
    :class:`RedisTokenBucket` for coroutines: every method is awaited, and ``get_tokens()`` stands for ``tokens``.

    Parameters and errors are the same, but *redis_client* is ``redis.asyncio.Redis`` or ``redis.asyncio.RedisCluster``.
    Whoever is cancelled while waiting has spent nothing; while the question is under way, that is unknown.
    """

    _runner_class = AsyncScriptRunner
    _polling_queue_class = AsyncPollingQueue
    _monitor_class = AsyncLeaseMonitor

    async def get_tokens(self) -> float:
        """See :attr:`RedisTokenBucket.tokens`."""
        return (await self._look(0.0)).tokens[-1]

    async def consume(self, tokens: float = 1, block: bool = False, timeout: float | None = None) -> bool:  # noqa: FBT001, FBT002 - as in RedisTokenBucket
        """See :meth:`RedisTokenBucket.consume`."""
        if timeout is not None:
            check_timeout(timeout, block=block)
        cost = tokens
        if (type(tokens) is not int and type(tokens) is not float) or not 0 <= tokens <= self._most:
            cost = self._cost(tokens)  # says what is wrong
        if not (cost and self._polling_queue.line and self._polling_queue.is_busy()):
            lease = self._path.newest
            if lease is not None and cost and self._path.spend(lease, cost):
                return True
            if not block:
                return (await self._ask(cost))[0] == 0
        return block and (await self._polling_queue.wait(lambda: self._decide(cost), timeout)).allowed

    async def try_consume(self, tokens: float = 1) -> Decision:
        """See :meth:`RedisTokenBucket.try_consume`."""
        cost = self._cost(tokens)
        if cost and self._polling_queue.is_busy():
            return self._behind(await self._look(cost))
        return await self._decide(cost)

    async def wait_time(self, tokens: float = 1) -> float:
        """See :meth:`RedisTokenBucket.wait_time`."""
        return (await self._look(self._cost(tokens))).retry_after

    async def refund(self, tokens: float = 1) -> None:
        """See :meth:`RedisTokenBucket.refund`."""
        for call in self._path.refund(self._cost(tokens)):
            await self._runner.run_call(call)
        self._polling_queue.wake_head()

    async def close(self) -> None:
        """See :meth:`RedisTokenBucket.close`; the connections are those of this event loop."""
        if self._monitor is not None:
            await self._monitor.close()
        await self._runner.close()

    async def _ask(self, cost: float) -> Answer:
        answer = self._path.answer_locally(cost)
        if answer is None:
            answer = await self._runner.batcher(self._slot).submit(self._path, cost)
        if self._monitor is not None:
            self._monitor.wake()
        return answer

    async def _decide(self, cost: float) -> Decision:
        return self._path.decision(await self._ask(cost))

    async def _look(self, cost: float) -> Decision:
        return await self._decide(-cost)


def create_redis_bucket_hierarchy(
    redis_client: Client, config: Mapping[str, object], *, timeout: float = 1.0, lease: float | None = None
) -> dict[str, RedisTokenBucket]:
    """
    Make a tree of buckets in Redis from nested mappings. Every name is a key.

    Args:
        redis_client: See :class:`RedisTokenBucket`.
        config: As :func:`bucketflow.hierarchical.create_bucket_hierarchy` takes it.
        timeout: See :class:`RedisTokenBucket`.
        lease: See :class:`RedisTokenBucket`; of each bucket.

    Returns:
        Every bucket by its name, parents before their children.

    Raises:
        ConfigError: As :func:`bucketflow.hierarchical.create_bucket_hierarchy` does; or a name cannot be a key.
    """
    return _hierarchy(RedisTokenBucket, redis_client, config, timeout=timeout, lease=lease)


def create_async_redis_bucket_hierarchy(
    redis_client: AsyncClient, config: Mapping[str, object], *, timeout: float = 1.0, lease: float | None = None
) -> dict[str, AsyncRedisTokenBucket]:
    """See :func:`create_redis_bucket_hierarchy`."""
    return _hierarchy(AsyncRedisTokenBucket, redis_client, config, timeout=timeout, lease=lease)


def _hierarchy(
    kind: type[BucketT],
    client: Client | AsyncClient,
    config: Mapping[str, Any],
    **options: Any,  # noqa: ANN401 - the constructor's
) -> dict[str, BucketT]:
    buckets: dict[str, BucketT] = {}
    for one in parse_hierarchy(config):
        parent = None if one.parent is None else buckets[one.parent]
        numbers = (one.limit.capacity, one.limit.fill_rate, one.initial_tokens)
        buckets[one.name] = kind(client, one.name, *numbers, parent=parent, **options)
    return buckets
