"""Headroom: the largest batch inside the bound, and the fullest of what is known."""

from __future__ import annotations

import pytest

from control.headroom import BatchLimit, DecodePace, headroom_rps, largest_batch, pool_fullness
from control.types.workers import Role
from tests.control.builders import reading, traffic

LINE = [(batch, 0.010 + 0.002 * batch) for batch in (2.0, 4.0, 6.0, 8.0)]


def test_the_largest_batch_is_where_a_step_takes_the_bound() -> None:
    assert largest_batch(LINE, 0.05) == pytest.approx(20.0)


def test_a_bound_under_the_fixed_part_leaves_no_batch() -> None:
    assert largest_batch(LINE, 0.005) == 0.0


def test_a_line_is_not_believed_far_beyond_the_batches_seen() -> None:
    assert largest_batch(LINE, 10.0) == 32.0


@pytest.mark.parametrize("looks", [[], LINE[:2], [(4.0, 0.01)] * 9, [(b, 0.1 - 0.001 * b) for b in (1.0, 5.0, 9.0)]])
def test_too_little_or_a_falling_line_is_unknown(looks: list[tuple[float, float]]) -> None:
    assert largest_batch(looks, 0.1) is None


def test_decode_is_as_full_as_the_fuller_of_kv_and_batch() -> None:
    assert pool_fullness(Role.DECODE, 0.45, None, BatchLimit(6.0, 8.0)) == 0.75
    assert pool_fullness(Role.DECODE, 0.45, None, BatchLimit(6.0, None)) == 0.5
    assert pool_fullness(Role.DECODE, None, None, None) is None


def test_headroom_is_what_the_fullest_leaves() -> None:
    seen = traffic(offered_rps=3.0, attainment=1.0)
    assert headroom_rps(Role.DECODE, 0.45, None, seen, BatchLimit(6.0, 8.0)) == pytest.approx(1.0)
    assert headroom_rps(Role.DECODE, 0.45, None, traffic(offered_rps=3.0, attainment=0.9), None) == 0.0


def test_the_batch_of_engines_that_do_not_say_what_they_run_is_unknown() -> None:
    telling, silent = reading("w0", Role.DECODE), reading("w1", Role.DECODE, unknown=("num_running",))
    assert DecodePace().limits({"w0": telling}, 0.05)[Role.DECODE].batch == 0.0
    assert DecodePace().limits({"w0": telling, "w1": silent}, 0.05) == {}
