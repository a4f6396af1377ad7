"""Near misses: which names are taken for a misspelt option."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bucketflow_celery.config.near_miss import nearest

OPTIONS = ["tenant", "tenant_inherits", "cost", "max_wait", "on_limit", "app", "rate", "capacity", "shared"]
LETTER = st.sampled_from(string.ascii_lowercase + "_")


@st.composite
def misspelt(draw, most=2):
    """Return an option, and its name with one letter or more inserted, removed, replaced or swapped."""
    option = draw(st.sampled_from(OPTIONS))
    name, start = option, 0
    for _ in range(draw(st.integers(1, most if len(option) > 4 else 1))):
        if start >= len(name):
            break
        at = draw(st.integers(start, len(name) - 1))
        start = at + 2  # a letter that is swapped and replaced counts as more than two
        before, letter, after = name[:at], name[at], name[at + 1 :]
        name = draw(
            st.sampled_from(
                [
                    before + draw(LETTER) + letter + after,
                    before + after,
                    before + draw(LETTER) + after,
                    before + after[:1] + letter + after[1:],
                ]
            )
        )
    return option, name


@given(misspelt())
def test_a_name_that_is_off_by_a_letter_or_two_is_near_its_option(case):
    option, name = case
    assert nearest(name, [option]) == option
    assert nearest(name.upper(), [option]) == option


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_is_nearest_to_itself(name):
    assert nearest(name, OPTIONS) == name


FAR = [
    "",
    "port",
    "code",
    "tags",
    "limits",
    "wait",
    "name",
    "bind",
    "region",
    "tenancy_id",
    "capability_x",
    "host_name",
]


@pytest.mark.parametrize("name", FAR)
def test_other_names_are_near_none(name):
    assert nearest(name, OPTIONS) is None


def test_the_nearest_of_several_is_found():
    assert nearest("max_hait", ["max_hold", "max_wait"]) == "max_wait"
    assert nearest("anything", []) is None
