"""Held tasks are reserved requests, but neither the autoscaler nor ``worker_disable_prefetch`` counts them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from celery.worker import state
from celery.worker.autoscale import Autoscaler
from hypothesis import given
from hypothesis import strategies as st

from bucketflow_celery.worker.held_requests import HeldRequests


class Request:
    """A request, which Celery compares by identity."""


class QoS:
    """Stand-in for the QoS of Kombu's channel for Redis, whose window never fills."""

    def can_consume(self):
        return True


@pytest.fixture(autouse=True)
def clear_reserved_requests():
    state.reserved_requests.clear()
    yield
    state.reserved_requests.clear()


def consumer(*, disable_prefetch=True, processes=2):
    return SimpleNamespace(
        app=SimpleNamespace(conf={"worker_disable_prefetch": disable_prefetch}),
        connection=SimpleNamespace(transport=SimpleNamespace(driver_type="redis")),
        task_consumer=SimpleNamespace(channel=SimpleNamespace(qos=QoS())),
        pool=SimpleNamespace(num_processes=processes),
    )


def autoscaler():
    return Autoscaler(SimpleNamespace(num_processes=1), max_concurrency=10, min_concurrency=1)


@given(st.lists(st.sampled_from(["receive", "hold", "release", "end"])))
def test_the_autoscaler_counts_the_reserved_requests_that_are_not_held(steps):
    state.reserved_requests.clear()
    controller = SimpleNamespace(autoscaler=autoscaler())
    held = HeldRequests(controller)
    held.connect(consumer())
    reserved, holding = [], []
    for step in steps:
        if step == "receive":
            reserved.append(Request())
            state.reserved_requests.add(reserved[-1])
        elif step == "hold" and reserved:
            holding.append(reserved.pop())
            held.add(holding[-1])
        elif step == "release" and holding:
            reserved.append(holding.pop())
            held.discard(reserved[-1])
        elif step == "end" and reserved:
            state.reserved_requests.discard(reserved.pop())
        assert controller.autoscaler.qty == len(reserved)
        assert set(state.reserved_requests) == {*reserved, *holding}


def test_an_autoscaler_is_still_of_its_class_and_is_replaced_once():
    controller = SimpleNamespace(autoscaler=autoscaler())
    held = HeldRequests(controller)
    held.connect(consumer())
    replaced = type(controller.autoscaler)
    held.connect(consumer())
    assert type(controller.autoscaler) is replaced
    assert isinstance(controller.autoscaler, Autoscaler)


def test_without_prefetching_a_message_is_fetched_while_less_than_a_pool_of_requests_is_not_held():
    held, made = HeldRequests(SimpleNamespace(autoscaler=None)), consumer()
    held.connect(made)
    qos = made.task_consumer.channel.qos
    requests = [Request() for _ in range(4)]
    fetched = []
    for request in requests:
        fetched.append(qos.can_consume())
        state.reserved_requests.add(request)
        if request is requests[0]:
            held.add(request)
    assert fetched == [True, True, True, False]
    held.connect(made)  # on a new connection no request is held, so all four count
    assert not qos.can_consume()


def test_with_prefetching_the_channel_is_not_changed():
    made = consumer(disable_prefetch=False)
    HeldRequests(SimpleNamespace(autoscaler=None)).connect(made)
    assert "can_consume" not in vars(made.task_consumer.channel.qos)


def test_without_prefetching_nothing_is_fetched_behind_held_tasks_that_block_all_others():
    held, made = HeldRequests(SimpleNamespace(autoscaler=None)), consumer()
    held.connect(made)
    qos, requests = made.task_consumer.channel.qos, [Request() for _ in range(2)]
    for request in requests:
        assert qos.can_consume()
        state.reserved_requests.add(request)
        held.add(request, is_blocking=True)
    assert not qos.can_consume()
    assert held.reserved() == 0
    held.discard(requests[0])
    state.reserved_requests.discard(requests[0])
    assert qos.can_consume()
