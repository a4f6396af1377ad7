"""Shutdowns, restarts and changes of limits: no held task is lost."""

from __future__ import annotations

import os
import signal

import pytest
from processes import wait_until
from records import JITTER, excess

SLOW = {"rate": "2/s", "capacity": 1}


@pytest.mark.timing
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_warm_shutdown_requeues_held_tasks_for_other_workers_at_once(fleet, pool):
    fleet.configure(limits={"queues": {"*": {"rate": "4/s", "capacity": 1}}})
    first = fleet.worker(pool)
    [running] = fleet.send("work", "long", 3)
    fleet.records.wait("starts", 1)
    sent = {result.id for result in fleet.send("work", times=6)}
    wait_until(lambda: len(fleet.records.deliveries()) == 7)
    fleet.worker(pool)

    first.terminate()
    others = fleet.records.starts(6, args=[], timeout=6)

    assert first.process.running  # it still runs the long task
    assert {start["id"] for start in others} == sent
    assert running.get(timeout=10) == "long"
    assert first.wait_end() == 0
    assert excess(fleet.records.of("starts"), 1, 4) <= JITTER


def test_a_soft_shutdown_requeues_held_tasks_after_its_timeout(fleet):
    fleet.configure(limits={"queues": {"*": {"rate": "2/s", "capacity": 1}}}, worker_soft_shutdown_timeout=1)
    first = fleet.worker("prefork")
    fleet.send("work", "long", 0.5)
    fleet.records.wait("starts", 1)
    sent = {result.id for result in fleet.send("work", times=4)}
    wait_until(lambda: len(fleet.records.deliveries()) == 5)

    first.signal(signal.SIGQUIT)
    first.wait_end(5)
    fleet.worker()

    starts = fleet.records.starts(4, args=[])
    assert {start["id"] for start in starts} == sent
    assert fleet.records.count("starts") == 5


@pytest.mark.timing
def test_a_message_that_is_held_for_max_hold_is_requeued(fleet):
    fleet.configure(limits={"queues": {"*": {"rate": "1/s", "capacity": 1}}}, bucketflow_max_hold=0.5)
    fleet.worker()
    sent = {result.id for result in fleet.send("work", times=4)}

    starts = fleet.records.wait("starts", 4)

    assert {start["id"] for start in starts} == sent
    assert fleet.stats()["requeued"] >= 2
    assert sum(fleet.records.deliveries().values()) >= 4 + 2
    assert excess(starts, 1, 1) <= 0.2


def test_limits_hold_when_pool_processes_are_replaced(fleet):
    fleet.configure(limits={"queues": {"*": {"rate": "10/s", "capacity": 2}}}, worker_max_tasks_per_child=2)
    fleet.worker("prefork")
    sent = sorted(result.id for result in fleet.send("work", times=16))

    starts = fleet.records.wait("starts", 16)

    assert sorted(start["id"] for start in starts) == sent
    assert len({start["pid"] for start in starts}) >= 6
    # Some tasks start late, because their child has yet to be forked. So only the total time shows the rate.
    assert starts[-1]["at"] - starts[0]["at"] >= 0.9 * (16 - 2) / 10
    assert set(fleet.records.deliveries().values()) == {1}


@pytest.mark.parametrize(("on_limit", "tasks"), [("retry", 1), ("hold", 2), ("park", 1), ("park", 2)])
def test_a_replaced_pool_process_makes_no_slot(fleet, on_limit, tasks):
    fleet.configure(
        limits={"queues": {"*": {"rate": "10/s", "capacity": 1}}},
        bucketflow_on_limit=on_limit,
        worker_max_tasks_per_child=tasks,
    )
    fleet.worker("prefork", concurrency=2)
    fleet.send("work", "long", 0.3, times=12)
    fleet.send("work", "short", times=10)

    starts = fleet.records.wait("starts", 22)

    # A task that was admitted for a slot that is not there starts late, in one burst with others.
    assert excess(starts, 1, 10) <= JITTER
    assert max(fleet.records.deliveries().values()) == 1


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_limits_hold_with_late_acknowledgement(fleet, pool):
    fleet.configure(
        limits={"queues": {"*": {"rate": "10/s", "capacity": 2}}, "tenants": {"acme": {"rate": "5/s", "capacity": 1}}}
    )
    fleet.worker(pool)
    held = fleet.send("late", "held", times=20)
    deferred = fleet.send("late", "deferred", times=5, headers={"tenant": "acme"})

    starts = fleet.records.wait("starts", 25)

    assert excess(starts, 2, 10) <= JITTER
    assert sorted(start["id"] for start in starts) == sorted(result.id for result in held + deferred)
    assert {result.get(timeout=5) for result in held + deferred} == {"held", "deferred"}
    deliveries = fleet.records.deliveries()
    assert {deliveries[result.id] for result in held} == {1}
    assert max(deliveries[result.id] for result in deferred) == 2


@pytest.mark.timing
def test_held_tasks_start_after_a_child_with_a_late_task_was_killed(fleet):
    fleet.configure(limits={"queues": {"*": SLOW}})
    fleet.worker("prefork")
    fleet.send("late", "victim", 2)
    [start] = fleet.records.wait("starts", 1)
    fleet.send("work", times=2)
    os.kill(start["pid"], signal.SIGKILL)

    starts = fleet.records.wait("starts", 4)

    assert len([again for again in starts if again["id"] == start["id"]]) == 2
    assert excess(starts, 1, 2) <= 0.3


def test_changed_limits_apply_to_every_worker_at_once(fleet):
    fleet.configure(limits={"queues": {"*": {"rate": "1/h", "capacity": 2}}})
    fleet.start(2)
    fleet.send("work", times=40)
    fleet.records.wait("starts", 2)

    fleet.throttle().set_limits({"queues": {"*": {"rate": "10/s", "capacity": 2}}})
    starts = fleet.records.wait("starts", 40, timeout=12)
    assert excess(starts[2:], 2, 10) <= JITTER
    assert len({start["node"] for start in starts}) == 2

    fleet.throttle().set_limits(None)
    fleet.send("work", "refused", times=4)
    refused = fleet.records.starts(0, args=["refused"])
    fleet.records.wait("refusals", 1)
    assert len(refused) <= 2
