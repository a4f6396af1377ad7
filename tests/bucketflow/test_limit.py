"""The values that a limit accepts, and the errors for all others."""

from __future__ import annotations

import math

import pytest

from bucketflow import ConfigError, Limit

PARSED = [  # text, capacity given, capacity, tokens per second
    ("100/s", None, 100, 100),
    ("30/m", None, 1, 0.5),
    ("1000/h", None, 1, 1000 / 3600),
    ("5000/d", None, 1, 5000 / 86_400),
    ("600/m", None, 10, 10),
    (" 2.5 / s ", None, 2.5, 2.5),
    ("0.1/s", None, 1, 0.1),
    ("100/s", 5, 5, 100),
]

NO_RATE = ["", "100", "100/", "/s", "100/w", "-1/s", "0/s", "0.0/m", "1e3/s", "ten/s", "1/s/s", None, 100, b"1/s"]

NO_NUMBER = [0, -1, math.nan, math.inf, -math.inf, 10**400, True, False, "1", None, 1j, [1]]


@pytest.mark.parametrize(("text", "given", "capacity", "fill_rate"), PARSED)
def test_a_parsed_rate_has_the_tokens_of_one_second_as_its_capacity(text, given, capacity, fill_rate):
    assert Limit.parse(text, capacity=given) == Limit(capacity, fill_rate)


@pytest.mark.parametrize("text", NO_RATE)
def test_a_text_that_is_not_a_rate_is_named(text):
    with pytest.raises(ConfigError) as raised:
        Limit.parse(text)
    assert (raised.value.entry, raised.value.value) == ("rate", text)
    assert '"100/s"' in str(raised.value)


@pytest.mark.parametrize("entry", ["capacity", "fill_rate"])
@pytest.mark.parametrize("value", NO_NUMBER)
def test_an_invalid_number_is_named(entry, value):
    with pytest.raises(ConfigError, match=entry) as raised:
        Limit(**{"capacity": 1, "fill_rate": 1, entry: value})
    assert raised.value.value is value


def test_a_bucket_that_fills_in_more_than_31_years_is_refused():
    assert Limit(1e9, 1).span == 1e15
    with pytest.raises(ConfigError, match="31 years"):
        Limit(1e9 + 1, 1)


def test_a_limit_is_an_immutable_value():
    assert len({Limit(1, 2), Limit(1, 2), Limit(2, 1)}) == 2
    with pytest.raises(AttributeError):
        Limit(1, 2).capacity = 3
