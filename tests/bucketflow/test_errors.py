"""The errors of the library: their messages, and that they survive pickling."""

from __future__ import annotations

import copy
import pickle

import pytest

from bucketflow import (
    BucketflowError,
    ConfigError,
    CostExceedsCapacity,
    NotPicklable,
    RateLimitExceeded,
    StoreAccessDenied,
    StoreFull,
    StoreUnavailable,
)

ERRORS = [
    (RateLimitExceeded("mail", 2, 0.25), "mail: 2 token(s) refused, retry after 0.250000 s"),
    (CostExceedsCapacity("mail", 9, 5), "mail: 9 token(s) can never be granted, its capacity is 5"),
    (StoreUnavailable("redis://h", "timed out"), "redis://h is unavailable: timed out"),
    (StoreFull("redis://h", "OOM"), "redis://h is out of memory: OOM"),
    (StoreAccessDenied("redis://h", "NOPERM", "PSETEX"), "redis://h denies this user PSETEX: NOPERM"),
    (
        StoreAccessDenied("redis://h", "no permissions to access a key"),
        "redis://h denies this user access: no permissions to access a key",
    ),
    (NotPicklable("B", "make two"), "a B lives in one process and can be neither pickled nor copied: make two"),
    (ConfigError("fill_rate", "x", "a number"), "fill_rate is 'x', expected a number"),
]

each_error = pytest.mark.parametrize(("error", "text"), ERRORS, ids=lambda value: type(value).__name__)


@each_error
def test_an_error_states_its_details_in_one_line(error, text):
    assert str(error) == text
    assert isinstance(error, BucketflowError)


@each_error
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_survives_pickling(error, text, protocol):
    again = pickle.loads(pickle.dumps(error, protocol))
    assert (type(again), str(again), vars(again), again.args) == (type(error), text, vars(error), error.args)


@each_error
def test_an_error_can_be_rebuilt_from_its_args_as_celery_does(error, text):
    assert str(type(error)(*error.args)) == str(copy.copy(error)) == text


def test_permanent_errors_are_value_errors_and_temporary_ones_are_not():
    assert issubclass(CostExceedsCapacity, ValueError)
    assert issubclass(ConfigError, ValueError)
    assert not issubclass(RateLimitExceeded, ValueError)
    assert not issubclass(StoreUnavailable, ValueError)
