"""Outcomes of a refusal: hold, defer, park or fail."""

from __future__ import annotations

import pytest

from bucketflow_celery import Limit, ThrottleTimeout
from bucketflow_celery.admission.refusal import Defer, Fail, Hold, Park, Refusal, exceeds_max_wait, on_refusal
from bucketflow_celery.config.levels import Level, ThrottlePolicy

QUEUE = Level("queue", "q:q", Limit(1, 10))
TENANT = Level("tenant", "q:q/t:a", Limit(1, 1))
PATH = (QUEUE, TENANT)

OUTCOMES = [
    # level, wait, on_limit, has_reservation, outcome
    (QUEUE, 0.01, "retry", False, Hold()),
    (QUEUE, 1e6, "retry", False, Hold()),
    (TENANT, 0.05, "retry", False, Hold()),
    (TENANT, 0.051, "retry", False, Defer(0.051)),
    (TENANT, 0.051, "hold", False, Hold()),
    (TENANT, 5.0, "retry", True, Hold()),
    (TENANT, 5.1, "retry", True, Defer(5.1)),
    (TENANT, 99.0, "retry", False, Defer(60.0)),
    (TENANT, 99.0, "retry", True, Defer(60.0)),
]


@pytest.mark.parametrize(("level", "wait", "on_limit", "has_reservation", "expected"), OUTCOMES)
def test_the_outcome_of_a_refusal(level, wait, on_limit, has_reservation, expected):
    policy = ThrottlePolicy(PATH, on_limit=on_limit)
    assert on_refusal(policy, Refusal(level, wait, 0.0, has_reservation), 60.0) == expected


@pytest.mark.parametrize(("level", "wait"), [(QUEUE, 0.01), (TENANT, 0.01), (TENANT, 99.0)])
def test_on_limit_park_parks_at_every_level_and_for_every_wait(level, wait):
    assert on_refusal(ThrottlePolicy(PATH, on_limit="park"), Refusal(level, wait, 0.0), 60.0) == Park()


@pytest.mark.parametrize(
    ("max_wait", "waited", "wait", "fails"),
    [(None, 1e9, 1e9, False), (10, 0, 10, False), (10, 0, 10.1, True), (10, 6, 4, False), (10, 6, 5, True)],
)
@pytest.mark.parametrize("level", [QUEUE, TENANT])
@pytest.mark.parametrize("on_limit", ["retry", "hold", "park"])
def test_a_task_that_would_exceed_its_max_wait_fails_at_once(  # noqa: PLR0913, PLR0917
    level, on_limit, max_wait, waited, wait, fails
):
    policy = ThrottlePolicy(PATH, max_wait=max_wait, on_limit=on_limit)
    outcome = on_refusal(policy, Refusal(level, wait, waited), 60.0)
    assert isinstance(outcome, Fail) == fails
    assert (exceeds_max_wait(policy, level, waited + wait) is not None) == fails
    if fails:
        error = outcome.error
        assert isinstance(error, ThrottleTimeout)
        assert (error.level, error.wait, error.max_wait) == (level.name, waited + wait, max_wait)
