"""Histograms: the stated error holds, merging is addition, nothing counted is unknown."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.histogram import (
    MAX_RELATIVE_ERROR,
    MAX_S,
    MIN_S,
    NUM_BUCKETS,
    bucket_of,
    delta,
    merge,
    merge_all,
    of_values,
    quantile,
    value_of,
)

durations = st.floats(min_value=MIN_S, max_value=MAX_S)


@given(durations)
def test_every_value_in_range_is_within_the_stated_error_of_its_bucket(value_s: float) -> None:
    assert value_of(bucket_of(value_s)) == pytest.approx(value_s, rel=MAX_RELATIVE_ERROR * (1 + 1e-9))


@given(st.lists(durations, min_size=1, max_size=200), st.floats(min_value=0, max_value=1))
def test_a_quantile_is_within_the_stated_error_of_the_value_at_that_rank(values: list[float], q: float) -> None:
    exact = sorted(values)[max(1, math.ceil(q * len(values))) - 1]
    assert quantile(of_values(values), q) == pytest.approx(exact, rel=MAX_RELATIVE_ERROR * (1 + 1e-9))


@given(st.lists(durations, max_size=50), st.lists(durations, max_size=50))
def test_merging_equals_counting_everything_at_once(a: list[float], b: list[float]) -> None:
    assert merge(of_values(a), of_values(b)) == of_values(a + b)
    assert merge_all([of_values(a), of_values(b), {}]) == of_values(a + b)


def test_nothing_counted_has_no_quantile() -> None:
    assert quantile({}, 0.5) is None
    assert quantile({3: 0}, 0.5) is None


@pytest.mark.parametrize(
    ("value_s", "bucket"), [(-1.0, 0), (0.0, 0), (MIN_S, 0), (1e9, NUM_BUCKETS - 1), (MAX_S, NUM_BUCKETS - 1)]
)
def test_values_outside_the_range_land_in_the_end_buckets(value_s: float, bucket: int) -> None:
    assert bucket_of(value_s) == bucket


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        bucket_of(math.nan)


def test_buckets_are_ordered() -> None:
    values = [value_of(bucket) for bucket in range(NUM_BUCKETS)]
    assert values == sorted(values)


def test_delta_is_what_was_counted_since_and_never_negative() -> None:
    assert delta({1: 5, 2: 3, 7: 1}, {1: 2, 2: 3, 7: 4}) == {1: 3}
