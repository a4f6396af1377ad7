"""The quick way past the lock: whoever works on a bucket is alone with it, and leaves it as it was if he is stopped."""

from __future__ import annotations

import asyncio
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from bucketflow import AsyncTokenBucket, HierarchicalTokenBucket, TokenBucket
from bucketflow.testing import FakeClock

KINDS = [TokenBucket, AsyncTokenBucket, HierarchicalTokenBucket]

each_kind = pytest.mark.parametrize("kind", KINDS)


class StoppedClock(FakeClock):
    """Once armed, it stops the first who asks for the time until it is let go, or interrupts him."""

    def __init__(self, error=None):
        super().__init__()
        self.error, self.armed = error, False
        self.asked, self.let_go = threading.Event(), threading.Event()

    def now(self):
        if getattr(self, "armed", False):
            self.armed = False
            self.asked.set()
            if self.error:
                raise self.error
            assert self.let_go.wait(30)
        return super().now()


def consume(bucket, *args, **kwargs):
    """Let a thread, or a loop of its own, call ``consume``."""
    result = bucket.consume(*args, **kwargs)
    return asyncio.run(result) if asyncio.iscoroutine(result) else result


@pytest.fixture
def interrupts():
    """Return what makes a Ctrl-C come within the next tenth of a millisecond."""

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    yield lambda: signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 1e-4))
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@each_kind
@pytest.mark.parametrize("verb", ["consume", "try_consume", "wait_time", "refund"])
def test_while_one_works_on_a_bucket_everybody_else_stays_out(kind, verb):
    clock = StoppedClock()
    bucket = kind(2, 1, clock=clock)
    with ThreadPoolExecutor(2) as pool:
        clock.armed = True
        first = pool.submit(consume, bucket)
        assert clock.asked.wait(30)
        second = pool.submit(consume if verb == "consume" else getattr(kind, verb), bucket)
        assert not wait([second], timeout=0.05).done
        clock.let_go.set()
        assert first.result(timeout=30)
        second.result(timeout=30)


@each_kind
@pytest.mark.parametrize("verb", ["consume", "try_consume", "wait_time", "refund"])
def test_who_is_interrupted_leaves_the_bucket_as_it_was_and_open_to_the_next(kind, verb):
    clock = StoppedClock(KeyboardInterrupt())
    bucket = kind(3, 1, clock=clock)
    assert consume(bucket)
    clock.armed = True
    with pytest.raises(KeyboardInterrupt):
        (consume if verb == "consume" else getattr(kind, verb))(bucket)
    assert [consume(bucket) for _ in range(3)] == [True, True, False]
    assert bucket.try_consume(0).tokens == (0,)


@pytest.mark.parametrize("kind", [TokenBucket, HierarchicalTokenBucket])
@pytest.mark.parametrize("verb", ["consume", "try_consume", "wait_time"])
def test_ctrl_c_at_any_instant_leaves_the_bucket_open(kind, verb, interrupts):
    bucket = kind(10**9, 1000)
    call = getattr(bucket, verb)
    for _ in range(500):
        try:
            interrupts()
            for _ in range(2000):  # far longer than the Ctrl-C takes, if nothing swallows it
                call()
        except KeyboardInterrupt:
            pass
    assert bucket.consume()
    assert bucket.refund(10**9) is None
    assert bucket.tokens == 10**9


@each_kind
def test_what_one_closed_and_could_not_open_again_the_next_one_opens(kind):
    bucket = kind(2, 1, clock=FakeClock())
    guarded = bucket._tree.tree if kind is HierarchicalTokenBucket else bucket._queue
    assert guarded.acquire()
    assert not guarded.slot
    assert consume(bucket)
    assert len(guarded.slot) == 1
    assert [consume(bucket) for _ in range(2)] == [True, False]


@each_kind
def test_it_opens_again_once_nobody_waits(kind):
    clock = FakeClock()
    bucket = kind(1, 1, clock=clock)
    for seconds in range(3):
        assert consume(bucket, block=True)
        assert clock.now() == seconds * 1_000_000
        assert not consume(bucket)
    clock.advance(1)
    assert consume(bucket)


@each_kind
@pytest.mark.usefixtures("often_switched")
def test_racing_threads_with_every_verb_spend_what_there_is_and_no_more(kind):
    bucket = kind(500, 1, clock=FakeClock())

    def work(number):
        spent = 0
        for turn in range(150):
            spent += consume(bucket)
            spent += 2 * consume(bucket, 2)
            if turn % (number + 2) == 0:
                spent += bucket.try_consume().allowed
                assert not consume(bucket, 500, block=True, timeout=0)
                bucket.wait_time()
            if number == 0 and spent and turn % 3 == 0:
                bucket.refund()
                spent -= 1
        return spent

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 500
    assert bucket.try_consume(0).tokens == (0,)


def test_racing_threads_on_the_machines_clock_never_get_more_than_the_limit():
    root = HierarchicalTokenBucket(400, 0.001)
    buckets = [TokenBucket(400, 0.001), root, *(HierarchicalTokenBucket(400, 0.001, root) for _ in range(2))]
    with ThreadPoolExecutor(8) as pool:
        single = sum(pool.map(lambda _: sum(buckets[0].consume() for _ in range(100)), range(8)))
        tree = sum(pool.map(lambda n: sum(buckets[1 + n % 3].consume() for _ in range(100)), range(8)))
    assert (single, tree) == (400, 400)


@pytest.mark.usefixtures("often_switched")
def test_racing_loops_in_several_threads_never_get_more_than_the_burst():
    bucket = AsyncTokenBucket(300, 1, clock=FakeClock())

    async def work():
        return sum([await bucket.consume() for _ in range(200)])

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda _: asyncio.run(work()), range(8))) == 300
