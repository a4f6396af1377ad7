"""Tasks that wait are seen: by ``celery inspect``, and by level in the counters."""

from __future__ import annotations

import pytest
from processes import wait_until

SLOW = {"rate": "2/m", "capacity": 1}
SEEN = [
    # level that binds, options, where inspect lists the tasks
    ("tenant", {"bucketflow_on_limit": "hold"}, "reserved"),
    ("task", {"bucketflow_on_limit": "hold", "worker_disable_prefetch": True}, "reserved"),
    ("queue", {}, "reserved"),
    ("tenant", {}, "scheduled"),
    ("task", {}, "scheduled"),
]


@pytest.mark.parametrize(("level", "options", "where"), SEEN)
def test_waiting_tasks_are_listed_and_counted_by_level(fleet, level, options, where):
    fleet.configure(limits={f"{level}s": {"*": SLOW}}, **options)
    fleet.worker(concurrency=4)
    first, *waiting = fleet.send("work", times=6, headers={"tenant": "acme"})
    ids = sorted(result.id for result in waiting)
    first.get(timeout=10)

    wait_until(lambda: fleet.stats()[level] == 5, pause=0.1)
    inspect = fleet.inspect()
    [listed] = getattr(inspect, where)().values()
    [states] = inspect.query_task(*ids).values()

    assert sorted(task.get("request", task)["id"] for task in listed) == ids
    assert {task_id: state for task_id, (state, _) in states.items()} == dict.fromkeys(ids, where)
    assert sum(fleet.stats()[name] for name in ("all", "queue", "tenant", "task", "other")) == 5
    [active] = inspect.active().values()
    assert active == []


def test_tasks_that_wait_for_the_end_of_a_pause_wait_for_no_level(fleet):
    fleet.throttle().pause()
    fleet.worker()
    fleet.send("work", times=3)

    wait_until(lambda: fleet.stats()["other"] == 3, pause=0.1)
