"""Errors of the throttle keep their attributes through pickle, by which pools and result backends send them."""

from __future__ import annotations

import pickle

import pytest

from bucketflow import BucketflowError, ConfigError
from bucketflow_celery import ConfigErrors, CostExceedsCapacity, LimitsChanged, StoreUnavailable, ThrottleTimeout

ERRORS = [
    (ThrottleTimeout("tenant", 12.5, 10), "the tenant limit requires a wait of 12.500 s, max_wait is 10 s"),
    (CostExceedsCapacity("q:q", 5, 3), "q:q: 5 token(s) can never be granted, its capacity is 3"),
    (StoreUnavailable("redis://localhost", "gone"), "redis://localhost is unavailable: gone"),
    (
        LimitsChanged("a1", "b2"),
        "the limits have changed since they were read: expected version 'a1', version 'b2' is in force",
    ),
    (ConfigErrors([ConfigError("a", 1, "2"), ConfigError("b", 3, "4")]), "a is 1, expected 2\nb is 3, expected 4"),
]


@pytest.mark.parametrize(("error", "text"), ERRORS, ids=[type(error).__name__ for error, _ in ERRORS])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_survives_pickle(error, text, protocol):
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is type(error)
    assert str(again) == str(error) == text
    assert isinstance(again, BucketflowError)
    attributes = {name: value for name, value in vars(error).items() if name != "mistakes"}
    assert {name: getattr(again, name) for name in attributes} == attributes


@pytest.mark.parametrize("error", [error for error, _ in ERRORS[:4]])
def test_an_error_can_be_rebuilt_from_its_arguments(error):
    # A JSON result backend stores the module and name of the type, and the arguments.
    assert str(type(error)(*error.args)) == str(error)


def test_config_errors_is_one_config_error_that_keeps_all_mistakes():
    again = pickle.loads(pickle.dumps(ERRORS[-1][0]))
    assert isinstance(again, ConfigError)
    assert [mistake.entry for mistake in again.mistakes] == ["a", "b"]
