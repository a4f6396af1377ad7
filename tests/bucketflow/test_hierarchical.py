"""A tree of buckets: a call takes tokens at every level or at none, and each level is fair."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import BlockedCallers, until

from bucketflow import ConfigError, CostExceedsCapacity, HierarchicalTokenBucket, Limit, create_bucket_hierarchy
from bucketflow.algorithm import gcra
from bucketflow.algorithm.wait_tree import BucketNode, Waiter, WaitTree
from bucketflow.testing import FakeClock

SHOP = {
    "name": "shop",
    "capacity": 10,
    "fill_rate": 1,
    "children": [
        {"name": "acme", "capacity": 5, "fill_rate": 5, "initial_tokens": 2},
        {
            "name": "emca",
            "capacity": 4,
            "fill_rate": 0.5,
            "children": [{"name": "mail", "capacity": 4, "fill_rate": 4}],
        },
    ],
}

WRONG = [  # what replaces entries of SHOP's second child, the entry that the error names
    ({"fill_rate": -1}, "config.children[1].fill_rate"),
    ({"fill_rate": "1/s"}, "config.children[1].fill_rate"),
    ({"capacity": 0}, "config.children[1].capacity"),
    ({"capacity": True}, "config.children[1].capacity"),
    ({"initial_tokens": 5}, "config.children[1].initial_tokens"),
    ({"name": "acme"}, "config.children[1].name"),
    ({"name": "shop"}, "config.children[1].name"),
    ({"name": ""}, "config.children[1].name"),
    ({"name": 7}, "config.children[1].name"),
    ({"rate": 1}, "config.children[1].rate"),
    ({"children": {"name": "mail"}}, "config.children[1].children"),
    ({"children": ["mail"]}, "config.children[1].children[0]"),
    ({"children": [{"name": "mail", "capacity": 1}]}, "config.children[1].children[0].fill_rate"),
    ({"children": [{"capacity": 1, "fill_rate": 1}]}, "config.children[1].children[0].name"),
]


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def shop(clock):
    """Return the buckets of SHOP by name."""
    return create_bucket_hierarchy(SHOP, clock=clock)


def test_a_hierarchy_is_created_from_nested_mappings(shop):
    assert list(shop) == ["shop", "acme", "emca", "mail"]
    assert [bucket.name for bucket in shop["shop"].children] == ["acme", "emca"]
    assert shop["mail"].parent is shop["emca"]
    assert shop["shop"].parent is None
    assert [bucket.tokens for bucket in shop.values()] == [10, 2, 4, 4]
    assert (shop["emca"].limit, shop["emca"].capacity, shop["emca"].fill_rate) == (Limit(4, 0.5), 4, 0.5)


@pytest.mark.parametrize(("wrong", "entry"), WRONG)
def test_a_wrong_entry_is_named_by_its_path(wrong, entry):
    first, second = SHOP["children"]
    with pytest.raises(ConfigError) as raised:
        create_bucket_hierarchy({**SHOP, "children": [first, {**second, **wrong}]})
    assert raised.value.entry == entry


@pytest.mark.parametrize("missing", ["name", "capacity", "fill_rate"])
def test_a_missing_key_is_named(missing):
    with pytest.raises(ConfigError, match=rf"config\.{missing} .* missing"):
        create_bucket_hierarchy({key: value for key, value in SHOP.items() if key != missing})


@pytest.mark.parametrize("config", [None, [SHOP], "shop"])
def test_a_config_that_is_not_a_mapping_is_named(config):
    with pytest.raises(ConfigError, match=r"^config is"):
        create_bucket_hierarchy(config)


def test_a_child_takes_from_every_level_and_a_refusal_from_none(shop):
    assert shop["mail"].consume(3)
    assert [shop[name].tokens for name in ("shop", "emca", "mail")] == [7, 1, 1]
    decision = shop["mail"].try_consume(2)
    assert (decision.allowed, decision.binding, decision.retry_after) == (False, 1, 2)
    assert decision.tokens == (7, 1, 1)
    assert [shop[name].tokens for name in ("shop", "emca", "mail")] == [7, 1, 1]
    assert shop["acme"].tokens == 2


def test_a_request_above_an_ancestors_capacity_names_it_and_never_waits():
    root = HierarchicalTokenBucket(2, 1, name="shop")
    leaf = HierarchicalTokenBucket(9, 1, HierarchicalTokenBucket(5, 1, root))
    with pytest.raises(CostExceedsCapacity, match="shop: 3 token"):
        leaf.consume(3, block=True)
    with pytest.raises(CostExceedsCapacity, match="level 1: 6 token"):
        HierarchicalTokenBucket(9, 1, HierarchicalTokenBucket(5, 1, HierarchicalTokenBucket(9, 1))).wait_time(6)
    assert root.tokens == 2


@pytest.mark.parametrize("capacities", [(20, 5), (5, 20), (5,), (30, 5, 30)])
def test_a_cost_above_the_capacity_of_a_level_is_refused_without_blocking_and_an_error_otherwise(capacities):
    bucket = None
    for level, capacity in enumerate(capacities):
        bucket = HierarchicalTokenBucket(capacity, 1, bucket, name=f"bucket {level}")
    narrowest = f"bucket {capacities.index(5)}: 20 token"
    assert bucket.consume(20) is False
    assert bucket.consume(20, block=False) is False
    assert bucket.try_consume(0).tokens == capacities
    for call in (
        lambda: bucket.consume(20, block=True),
        lambda: bucket.consume(20, block=True, timeout=0),
        lambda: bucket.try_consume(20),
        lambda: bucket.wait_time(20),
        lambda: bucket.refund(20),
    ):
        with pytest.raises(CostExceedsCapacity, match=narrowest):
            call()
    assert bucket.try_consume(0).tokens == capacities


def test_the_default_cost_above_the_capacity_of_a_level_is_refused_without_blocking():
    bucket = HierarchicalTokenBucket(1, 1, HierarchicalTokenBucket(0.5, 1))
    assert bucket.consume() is False
    assert bucket.try_consume(0).tokens == (0.5, 1)


def test_a_blocked_child_waits_for_the_slowest_level(shop, clock):
    assert shop["mail"].consume(4)
    assert shop["mail"].consume(4, block=True)
    assert clock.now() == 8_000_000


def test_a_refund_goes_to_every_level_and_never_above_its_capacity(shop):
    shop["mail"].consume(2)
    shop["emca"].consume(1)
    shop["mail"].refund(3)
    assert [shop[name].tokens for name in ("shop", "emca", "mail")] == [10, 4, 4]


def test_a_tree_has_one_clock(clock):
    root = HierarchicalTokenBucket(1, 1, clock=clock)
    with pytest.raises(ConfigError, match="clock"):
        HierarchicalTokenBucket(1, 1, root, clock=clock)
    with pytest.raises(ConfigError, match="parent"):
        HierarchicalTokenBucket(1, 1, "root")


def test_racing_threads_below_one_root_never_get_more_than_its_burst():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        root = HierarchicalTokenBucket(300, 1, clock=FakeClock())
        leaves = [HierarchicalTokenBucket(120, 1, root) for _ in range(4)]
        with ThreadPoolExecutor(8) as pool:
            counts = list(pool.map(lambda n: sum(leaves[n % 4].consume() for _ in range(200)), range(8)))
    finally:
        sys.setswitchinterval(before)
    assert sum(counts) == 300
    assert root.tokens == 0
    assert sum(leaf.tokens for leaf in leaves) == 4 * 120 - 300


@given(
    st.lists(st.builds(Limit, st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(-100, 2_000_000), st.floats(0, 1)), max_size=25),
)
@settings(deadline=None)
def test_a_path_gives_the_decisions_of_gcra(limits, steps):
    clock = FakeClock(start=10)
    fast = locked = None
    for limit in limits:
        fast = HierarchicalTokenBucket(limit.capacity, limit.fill_rate, fast, clock=None if fast else clock)
        locked = HierarchicalTokenBucket(limit.capacity, limit.fill_rate, locked, clock=None if locked else clock)
    states = (gcra.FULL,) * len(limits)
    for gap, share in steps:
        clock.advance(gap / 1_000_000)
        cost = share * min(limit.capacity for limit in limits)
        decision, states = gcra.consume_path(limits, states, clock.now(), cost)
        assert fast.consume(cost) is decision.allowed
        assert locked.try_consume(cost) == decision
        assert fast.wait_time(cost) == locked.wait_time(cost)
        assert fast.tokens == locked.tokens == gcra.tokens_at(limits[-1], states[-1], clock.now())


@pytest.fixture
def family():
    """Return blocked callers, an empty root on their clock, and its two children."""
    with BlockedCallers() as callers:
        root = callers.bucket(HierarchicalTokenBucket, 10, 1, 0)
        yield callers, root, HierarchicalTokenBucket(10, 100, root), HierarchicalTokenBucket(10, 0.1, root, 0)


def join(callers, bucket, *args, **kwargs):
    """Start a caller that blocks on *bucket*. Return its future once it waits."""
    before = len(bucket._tree.tree.waiters)
    future = callers.pool.submit(bucket.consume, *args, block=True, **kwargs)
    until(lambda: future.done() or len(bucket._tree.tree.waiters) > before)
    return future


def test_a_caller_that_waits_for_its_own_bucket_blocks_no_sibling(family):
    callers, root, fast, slow = family
    waiting = join(callers, slow, 1)  # 10 s
    until(lambda: callers.clock.sleeping == (10,))
    callers.clock.advance(3)
    assert fast.consume(3)
    assert not slow.consume(0.1)  # but no caller overtakes it there
    callers.clock.advance(7)
    assert waiting.result(timeout=30)
    assert root.tokens == pytest.approx(6)


def test_a_caller_that_needs_many_tokens_of_the_root_is_not_starved_by_callers_that_need_few(family):
    callers, root, fast, _ = family
    large = join(callers, root, 10)
    until(lambda: callers.clock.sleeping == (10,))
    for _ in range(9):
        callers.clock.advance(1)
        assert not fast.consume(1)
    callers.clock.advance(1)
    assert large.result(timeout=30)


def test_a_refund_that_grants_a_large_request_lets_the_caller_behind_it_move_up(family):
    callers, root, fast, _ = family
    large = join(callers, root, 10)
    until(lambda: callers.clock.sleeping == (10,))
    assert fast.wait_time(1) == 11
    assert not fast.consume(1, block=True, timeout=10.9)
    small = join(callers, fast, 1)
    root.refund(10)  # grants the large request; the small one is next
    assert large.result(timeout=30)
    until(lambda: callers.clock.sleeping == (1,))
    callers.clock.advance(1)
    assert small.result(timeout=30)
    assert root.tokens == pytest.approx(0)


def test_cancelling_a_waiter_gives_the_next_its_retry_time_and_wakes_it():
    root, leaf = BucketNode(Limit(5, 1), 5_000_000, "root"), BucketNode(Limit(5, 9), gcra.FULL, "leaf")
    tree, woken = WaitTree(), []
    large = Waiter((root,), 5, lambda: woken.append(large))
    small = Waiter((root, leaf), 1, lambda: woken.append(small))
    tree.join(large, 0)
    tree.join(small, 0)
    assert (large.retry_at, small.retry_at, small.binding) == (5_000_000, None, root)
    woken.clear()
    tree.cancel(large, 0)
    assert (small.retry_at, woken, tree.waiters) == (1_000_000, [small], [small])
    tree.grant_due(1_000_000)
    assert (small.granted, tree.waiters) == (True, [])
    tree.cancel(small, 1_000_000)  # granted, but its caller does not act on it
    assert tree.try_consume((root, leaf), 1_000_000, 0).tokens == (1, 5)


def test_a_child_that_is_not_referenced_is_freed():
    root = HierarchicalTokenBucket(10, 10)
    kept = [HierarchicalTokenBucket(1, 1, root, name=str(number)) for number in range(3)]
    for number in range(1000):
        assert HierarchicalTokenBucket(1, 1, root, name=f"tenant {number}").try_consume(0).allowed
    assert root.children == kept
    del kept[1]
    assert [child.name for child in root.children] == ["0", "2"]
