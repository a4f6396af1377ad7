"""The policy of a message: what the table of limits, the task and the marks of the fleet come to."""

from __future__ import annotations

import pytest
from celery_requests import app_in_memory

from bucketflow_celery import Throttle
from bucketflow_celery.testing import MemoryStore


@pytest.fixture
def throttle():
    app = app_in_memory()

    def work(tenant):
        return tenant

    for name in ("work", "other"):
        app.task(name=name, shared=False)(work)
    return Throttle(app, store=MemoryStore(), tenant="tenant", limits={"all": "10/s"})


def policy_of(throttle, task="work", tenant="acme", queue="q"):
    throttle.active_limits.refresh()
    return throttle.active_limits.resolve(throttle.app.tasks[task], {}, (tenant,), {}, queue)


PURGES = [
    # the purge, and the messages that it concerns
    ({}, {"work of acme", "work of umbrella", "other of acme"}),
    ({"tenant": "acme"}, {"work of acme", "other of acme"}),
    ({"task": "work"}, {"work of acme", "work of umbrella"}),
    ({"tenant": "acme", "task": "other"}, {"other of acme"}),
]


@pytest.mark.parametrize(("purge", "concerned"), PURGES)
def test_a_policy_says_when_its_tasks_were_purged(throttle, purge, concerned):
    calls = [("work", "acme"), ("work", "umbrella"), ("other", "acme")]
    assert [policy_of(throttle, *call).purged_at for call in calls] == [0, 0, 0]
    throttle.purge("q", **purge)
    assert {f"{task} of {tenant}" for task, tenant in calls if policy_of(throttle, task, tenant).purged_at} == concerned
    assert policy_of(throttle, queue="another").purged_at == 0


PAUSES = [
    ({}, "all", "all"),
    ({"queue": "q"}, "queue", None),
    ({"tenant": "acme"}, "tenant", "tenant"),
    ({"task": "work"}, "task", "task"),
    ({"tenant": "umbrella"}, None, None),
]


@pytest.mark.parametrize(("pause", "here", "in_another_queue"), PAUSES)
def test_a_policy_says_at_which_level_its_tasks_are_paused(throttle, pause, here, in_another_queue):
    throttle.pause(**pause)
    assert policy_of(throttle).paused == here
    assert policy_of(throttle, queue="another").paused == in_another_queue
    throttle.resume(**pause)
    assert policy_of(throttle).paused is None
