"""
Adapters that give every bucket class one interface, so that one table of cases tests them all.

``make(capacity, fill_rate, initial_tokens=None)`` creates an adapter. It has ``at(seconds)``, which sets its clock,
also backwards; ``consume(cost)``, which returns a Decision; ``tokens()``; and ``refund(cost)``. A new adapter is one
more entry in ``ADAPTERS`` of conftest.py.
"""

from __future__ import annotations

import asyncio

from bucketflow import AsyncTokenBucket, HierarchicalTokenBucket, Limit, TokenBucket
from bucketflow.algorithm import gcra
from bucketflow.testing import FakeClock


class GcraShell:
    """The arithmetic without a bucket class."""

    def __init__(self, capacity, fill_rate, initial_tokens=None):
        self.limit, self.full_at, self.now = Limit(capacity, fill_rate), gcra.FULL, 0
        if initial_tokens is not None:
            self.full_at = gcra.take(self.limit, self.full_at, 0, capacity - initial_tokens)

    def at(self, seconds):
        self.now = round(seconds * 1_000_000)

    def consume(self, cost=1):
        decision, self.full_at = gcra.consume(self.limit, self.full_at, self.now, cost)
        return decision

    def tokens(self):
        return gcra.tokens_at(self.limit, self.full_at, self.now)

    def refund(self, cost=1):
        self.full_at = gcra.refund(self.limit, self.full_at, self.now, cost)


class ThreadShell:
    """Two equal buckets: one answers with a Decision, the other with a bool. They must agree."""

    kind = TokenBucket

    def __init__(self, capacity, fill_rate, initial_tokens=None):
        self.clock = FakeClock()
        self.buckets = [
            self.kind(capacity, fill_rate, initial_tokens=initial_tokens, clock=self.clock) for _ in range(2)
        ]

    def at(self, seconds):
        self.clock.advance(seconds - self.clock.now() / 1_000_000)

    def take(self, bucket, cost):
        return bucket.consume(cost)

    def look(self, bucket):
        return bucket.tokens

    def consume(self, cost=1):
        decision = self.buckets[0].try_consume(cost)
        assert self.take(self.buckets[1], cost) is decision.allowed
        assert self.look(self.buckets[0]) == self.look(self.buckets[1]) == decision.tokens[-1]
        assert decision.allowed or self.buckets[1].wait_time(cost) == decision.retry_after
        return decision

    def tokens(self):
        return self.look(self.buckets[0])

    def refund(self, cost=1):
        for bucket in self.buckets:
            bucket.refund(cost)


class AsyncShell(ThreadShell):
    kind = AsyncTokenBucket

    def take(self, bucket, cost):
        return asyncio.run(bucket.consume(cost))

    def look(self, bucket):
        return asyncio.run(bucket.get_tokens())


class HierarchicalShell(ThreadShell):
    kind = HierarchicalTokenBucket
