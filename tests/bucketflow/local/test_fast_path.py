"""The fast path past the lock: one caller at a time owns a bucket, and an interrupted one leaves it unchanged."""

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
    """Once armed, it holds the next call of ``now`` until it is released, or interrupts it."""

    def __init__(self, error=None):
        super().__init__()
        self.error, self.armed = error, False
        self.called, self.released = threading.Event(), threading.Event()

    def now(self):
        if getattr(self, "armed", False):
            self.armed = False
            self.called.set()
            if self.error:
                raise self.error
            assert self.released.wait(30)
        return super().now()


def consume(bucket, *args, **kwargs):
    """Call ``consume``, in an event loop of its own if it is a coroutine."""
    result = bucket.consume(*args, **kwargs)
    return asyncio.run(result) if asyncio.iscoroutine(result) else result


@pytest.fixture
def interrupts():
    """Return a function that triggers a Ctrl-C within the next tenth of a millisecond."""

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    yield lambda: signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 1e-4))
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@each_kind
@pytest.mark.parametrize("method", ["consume", "try_consume", "wait_time", "refund"])
def test_while_one_call_owns_a_bucket_all_others_wait(kind, method):
    clock = StoppedClock()
    bucket = kind(2, 1, clock=clock)
    with ThreadPoolExecutor(2) as pool:
        clock.armed = True
        first = pool.submit(consume, bucket)
        assert clock.called.wait(30)
        second = pool.submit(consume if method == "consume" else getattr(kind, method), bucket)
        assert not wait([second], timeout=0.05).done
        clock.released.set()
        assert first.result(timeout=30)
        second.result(timeout=30)


@each_kind
@pytest.mark.parametrize("method", ["consume", "try_consume", "wait_time", "refund"])
def test_an_interrupted_call_leaves_the_bucket_unchanged_and_open_to_the_next(kind, method):
    clock = StoppedClock(KeyboardInterrupt())
    bucket = kind(3, 1, clock=clock)
    assert consume(bucket)
    clock.armed = True
    with pytest.raises(KeyboardInterrupt):
        (consume if method == "consume" else getattr(kind, method))(bucket)
    assert [consume(bucket) for _ in range(3)] == [True, True, False]
    assert bucket.try_consume(0).tokens == (0,)


@pytest.mark.parametrize("kind", [TokenBucket, HierarchicalTokenBucket])
@pytest.mark.parametrize("method", ["consume", "try_consume", "wait_time"])
def test_ctrl_c_at_any_time_leaves_the_bucket_open(kind, method, interrupts):
    bucket = kind(10**9, 1000)
    call = getattr(bucket, method)
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
def test_a_state_that_an_interrupted_call_did_not_release_is_released_by_the_next(kind):
    bucket = kind(2, 1, clock=FakeClock())
    state = bucket._tree.state if kind is HierarchicalTokenBucket else bucket._state
    assert state.acquire()
    assert not state.slot
    assert consume(bucket)
    assert len(state.slot) == 1
    assert [consume(bucket) for _ in range(2)] == [True, False]


@each_kind
def test_the_fast_path_opens_again_once_no_caller_waits(kind):
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
def test_racing_threads_that_call_every_method_spend_the_burst_and_no_more(kind):
    bucket = kind(500, 1, clock=FakeClock())

    def work(number):
        spent = 0
        for round_ in range(150):
            spent += consume(bucket)
            spent += 2 * consume(bucket, 2)
            if round_ % (number + 2) == 0:
                spent += bucket.try_consume().allowed
                assert not consume(bucket, 500, block=True, timeout=0)
                bucket.wait_time()
            if number == 0 and spent and round_ % 3 == 0:
                bucket.refund()
                spent -= 1
        return spent

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 500
    assert bucket.try_consume(0).tokens == (0,)


def test_racing_threads_on_the_system_clock_never_get_more_than_the_limit():
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
