"""Whatever waiters do, the queue grants in order, at the computed time, and never beyond the limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bucketflow import Limit
from bucketflow.algorithm.wait_queue import Waiter, WaitQueue

limits = st.builds(Limit, st.integers(1, 20), st.integers(1, 50))
shares = st.floats(0.01, 1)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("join"), shares),
        st.tuples(st.just("leave"), st.integers(0, 20)),
        st.tuples(st.just("consume"), shares),
        st.tuples(st.just("pass"), st.integers(0, 2_000_000)),
        st.tuples(st.just("step back"), st.integers(0, 1_000_000)),
    ),
    max_size=40,
)


def join(queue, now, *costs):
    waiters = [Waiter(cost, str) for cost in costs]
    for waiter in waiters:
        queue.join(waiter, now)
    return waiters


@given(limits, steps)
def test_no_window_is_ever_above_the_limit_and_grants_are_in_order(limit, steps):
    queue, now, joined, taken = WaitQueue(limit), 10_000_000, [], []
    for step, value in steps:
        if step == "join":
            waiter = Waiter(value * limit.capacity, str)
            joined.append(waiter)
            queue.join(waiter, now)
        elif step == "leave" and queue.waiters:
            position = value % len(queue.waiters)
            before = {waiter: waiter.due_at for waiter in queue.waiters}
            joined.remove(queue.waiters[position])
            moved_up = queue.cancel(queue.waiters[position], now)
            assert moved_up == [waiter for waiter in queue.waiters if waiter.due_at < before[waiter]]
            assert all(waiter.due_at <= before[waiter] + 1 for waiter in queue.waiters)
        elif step == "consume":
            waiting = bool(queue.waiters) and queue.waiters[0].due_at > now
            if queue.consume(now, value * limit.capacity):
                assert not waiting
                taken.append((now, value * limit.capacity))
        else:
            now = max(0, now + (value if step == "pass" else -value))
        queue.grant_due(now)
        granted = [waiter for waiter in joined if waiter.granted]
        assert granted == joined[: len(granted)]
        taken += [(now, waiter.cost) for waiter in granted]
        joined = joined[len(granted) :]
        assert [waiter.due_at for waiter in joined] == sorted(waiter.due_at for waiter in joined)
    for first, (start, _) in enumerate(taken):
        end, total = start, 0.0
        for at, cost in taken[first:]:
            end, total = max(end, at), total + cost
            assert total <= limit.capacity + limit.fill_rate * (end - start + 1) / 1e6 + 1e-6


@given(limits, st.lists(shares, max_size=10), shares)
def test_a_new_caller_is_granted_after_exactly_the_wait_it_was_given(limit, ahead, share):
    queue = WaitQueue(limit)
    join(queue, 0, *(cost * limit.capacity for cost in ahead))
    wait = queue.wait(0, share * limit.capacity)
    (waiter,) = join(queue, 0, share * limit.capacity)
    assert waiter.due_at == wait
    for at in sorted({each.due_at for each in queue.waiters}):
        queue.grant_due(at - 1)
        assert not waiter.granted
        queue.grant_due(at)
    assert waiter.granted


def test_waiters_behind_a_cancelled_one_move_up_and_a_new_caller_stays_behind_them():
    queue = WaitQueue(Limit(2, 1), full_at=2_000_000)
    first, second, third, fourth = join(queue, 0, 1, 2, 1, 2)
    assert [waiter.due_at for waiter in queue.waiters] == [1_000_000, 3_000_000, 4_000_000, 6_000_000]
    assert queue.cancel(second, 0) == [third, fourth]
    assert [waiter.due_at for waiter in (first, third, fourth)] == [1_000_000, 2_000_000, 4_000_000]
    assert queue.wait(0, 1) == 5_000_000
    assert queue.cancel(second, 0) == []


def test_cancelling_a_granted_waiter_refunds_its_tokens():
    queue = WaitQueue(Limit(2, 1))
    (waiter,) = join(queue, 0, 2)
    assert waiter.granted
    assert queue.tokens(0) == 0
    queue.cancel(waiter, 0)
    assert queue.tokens(0) == 2


@pytest.mark.parametrize(("reserved", "due"), [(True, [1, 2, 3]), (False, [1, 10, 11])])
def test_a_reservation_is_taken_at_its_grant_time_and_a_waiter_when_a_call_looks(reserved, due):
    queue = WaitQueue(Limit(1, 1), full_at=1_000_000)
    waiters = [Waiter(1, str, reserved=reserved) for _ in due]
    for waiter in waiters:
        queue.join(waiter, 0)
    queue.grant_due(1_000_000)
    assert [waiter.granted for waiter in waiters] == [True, False, False]
    queue.grant_due(9_999_999 if reserved else 10_000_000)
    assert [waiter.granted for waiter in waiters] == [True, True, reserved]
    assert waiters[-1].due_at == due[-1] * 1_000_000
