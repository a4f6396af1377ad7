"""Redis buckets as adapters of the story, see shells.py: the real scripts on a real server, with a controlled clock."""

from __future__ import annotations

import asyncio
import itertools
from functools import cache

import redis.asyncio
from shells import ThreadShell

from bucketflow.algorithm.stored_path import StoredBuckets
from bucketflow.distributed import AsyncRedisTokenBucket, RedisTokenBucket
from bucketflow.redis_client.runner import AsyncScriptRunner, ScriptRunner, _single_result
from bucketflow.redis_client.scripts import Script
from bucketflow.redis_client.topology import ScriptCall
from bucketflow.testing import FakeClock, MemoryRedis

#: Prefix of a script that shadows its sources of real time: ``TIME`` reads the key ``clock``, and no key expires.
STOPPED_CLOCK = """
local redis = {call = function(command, key, ...)
  local real = redis.call
  if command == 'TIME' then
    local clock = tonumber(real('GET', 'clock'))
    return {tostring(math.floor(clock / 1000000) + 1704067200), string.format('%.0f', clock % 1000000)}
  elseif command == 'PSETEX' then
    return real('SET', key, (select(2, ...)))
  elseif command == 'SET' then
    return real('SET', key, (...))
  end
  return real(command, key, ...)
end}
"""


#: Seconds that Redis may take to answer: far longer than any machine needs.
TIMEOUT = 30.0


@cache
def at_stopped_clock(script):
    return Script.of(script.name, STOPPED_CLOCK + script.text)


def with_stopped_clock(calls):
    return [ScriptCall.of(at_stopped_clock(call.script), call.keys, call.args) for call in calls]


class StoppedRunner(ScriptRunner):
    def run_call(self, call):
        return _single_result(self.run_all([call]))

    def run_all(self, calls):
        return super().run_all(with_stopped_clock(calls))


class AsyncStoppedRunner(AsyncScriptRunner):
    async def run_call(self, call):
        return _single_result(await self.run_all([call]))

    async def run_all(self, calls):
        return await super().run_all(with_stopped_clock(calls))


class RedisShell(ThreadShell):
    names = itertools.count()

    def __init__(self, client, capacity, fill_rate, initial_tokens=None):
        self.client = client
        self.at(0)
        self.buckets = [self.bucket(f"twin {next(self.names)}", capacity, fill_rate, initial_tokens) for _ in range(2)]
        for bucket in self.buckets:  # the first call of each bucket sets its initial state at time 0
            self.look(bucket)

    def bucket(self, *args):
        bucket = RedisTokenBucket(self.client, *args)
        bucket._runner = StoppedRunner(self.client, TIMEOUT)
        return bucket

    def at(self, seconds):
        self.client.set("clock", round(seconds * 1_000_000))

    def decide(self, bucket, cost):
        return bucket.try_consume(cost)

    def wait_time(self, bucket, cost):
        return bucket.wait_time(cost)

    def consume(self, cost=1):
        decision = self.decide(self.buckets[0], cost)
        assert self.take(self.buckets[1], cost) is decision.allowed
        assert self.look(self.buckets[0]) == self.look(self.buckets[1]) == decision.tokens[-1]
        assert decision.allowed or self.wait_time(self.buckets[1], cost) == decision.retry_after
        return decision


class LeasedRedisShell(RedisShell):
    """Leases tokens, on a clock that agrees with the server's."""

    def __init__(self, *args, **options):
        self.clock = FakeClock()
        super().__init__(*args, **options)

    def bucket(self, *args):
        bucket = RedisTokenBucket(self.client, *args, lease=2, clock=self.clock)
        bucket._runner = bucket._monitor._runner = StoppedRunner(self.client, TIMEOUT)
        return bucket

    def at(self, seconds):
        super().at(seconds)
        self.clock.advance(seconds - self.clock.now() / 1_000_000)


class AsyncRedisShell(RedisShell):
    """Runs each call in a new event loop, as Django's ``async_to_sync`` does."""

    def bucket(self, *args):
        client = redis.asyncio.Redis(**{key: self.client.get_connection_kwargs()[key] for key in ("host", "port")})
        bucket = AsyncRedisTokenBucket(client, *args)
        bucket._runner = AsyncStoppedRunner(client, TIMEOUT)
        return bucket

    def run(self, bucket, method, *args):
        async def call():
            try:
                return await getattr(bucket, method)(*args)
            finally:
                await bucket.close()

        return asyncio.run(call())

    def decide(self, bucket, cost):
        return self.run(bucket, "try_consume", cost)

    def take(self, bucket, cost):
        return self.run(bucket, "consume", cost)

    def look(self, bucket):
        return self.run(bucket, "get_tokens")

    def wait_time(self, bucket, cost):
        return self.run(bucket, "wait_time", cost)

    def refund(self, cost=1):
        for bucket in self.buckets:
            self.run(bucket, "refund", cost)


class Unexpiring(StoredBuckets):
    """Keeps full buckets, as :data:`STOPPED_CLOCK` does: the clock of a test may step back to before they were full."""

    def _get(self, key, _now):
        return self._stored.get(key)


class MemoryShell(RedisShell):
    """The same buckets without a server."""

    def __init__(self, *args, **options):
        self.clock = FakeClock()
        memory = MemoryRedis(self.clock)
        memory._buckets = Unexpiring()
        super().__init__(memory, *args, **options)

    def bucket(self, *args):
        return RedisTokenBucket(self.client, *args)

    def at(self, seconds):
        self.clock.advance(seconds - self.clock.now() / 1_000_000)


class LeasedMemoryShell(MemoryShell):
    def bucket(self, *args):
        return RedisTokenBucket(self.client, *args, lease=2)


class AsyncMemoryShell(MemoryShell, AsyncRedisShell):
    def bucket(self, *args):
        return AsyncRedisTokenBucket(self.client, *args)
