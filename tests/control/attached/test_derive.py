"""Tokens of an engine become work of two phases; what its own estimate says is not taken for it."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.fleets.attached.derive import derive, has_restarted, owed_tokens, pairs_of, per_bucket
from control.fleets.attached.engine_page import Buckets, Counters, EnginePage
from control.types.workers import Phase, Role
from engine.work import attention_pairs
from tests.control.attached.pages_of import TINY, page_of

BOUNDS = (1.0, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, math.inf)


def lengths_of(*lengths: int) -> Buckets:
    return tuple((bound, float(sum(1 for each in lengths if each <= bound))) for bound in BOUNDS)


def test_prefill_of_a_real_engine_is_what_its_ten_prompts_are():
    work = derive(page_of("prefill-1"), page_of("prefill-2"), Role.PREFILL, TINY)
    exact = TINY.prefill_flops(7000, 10 * attention_pairs(700, 700), 10)
    prefill = work[Phase.PREFILL]
    assert (prefill.tokens, prefill.steps) == (7000, 10)
    assert prefill.flops == pytest.approx(exact, rel=0.02)
    assert work[Phase.DECODE].tokens == work[Phase.DECODE].flops == work[Phase.DECODE].bytes == 0
    grown = page_of("prefill-2").counters.exported_flops - page_of("prefill-1").counters.exported_flops  # type: ignore[operator]
    assert grown > 1.3 * exact  # the engine counts each prompt as if every token saw every other


def test_decode_of_a_real_engine_is_what_its_answers_are():
    work = derive(page_of("decode-1"), page_of("decode-2"), Role.DECODE, TINY)
    decode = work[Phase.DECODE]
    assert (decode.tokens, decode.steps) == (160, 160)  # one at a time: as many steps as tokens
    assert decode.bytes is not None
    assert decode.bytes > 160 * (TINY.body_bytes + TINY.head_bytes)
    assert work[Phase.PREFILL].tokens == work[Phase.PREFILL].flops == 0


def test_without_the_models_shape_there_are_tokens_and_no_work():
    work = derive(page_of("prefill-1"), page_of("prefill-2"), Role.PREFILL, None)
    assert work[Phase.PREFILL].tokens == 7000
    assert work[Phase.PREFILL].flops is work[Phase.PREFILL].bytes is None


def test_on_a_mixed_engine_steps_that_decode_read_the_weights_for_decode():
    before = EnginePage(counters=Counters(prefill_tokens=0, decode_tokens=0, steps=0, length_tokens=0))
    now = EnginePage(
        counters=Counters(prefill_tokens=100, decode_tokens=31, steps=40, length_tokens=100, num_prompts=1),
        lengths=lengths_of(100),
    )
    work = derive(before, now, Role.MIXED, TINY)
    assert (work[Phase.DECODE].tokens, work[Phase.DECODE].steps, work[Phase.PREFILL].steps) == (30, 30, 10)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=30))
def test_pairs_are_exact_for_one_prompt_and_within_their_bounds_for_many(lengths: list[int]):
    found = pairs_of((), lengths_of(*lengths), sum(lengths))
    squares = 2 * found - sum(lengths)
    buckets = per_bucket((), lengths_of(*lengths))
    assert sum(low * low * count for low, _, count in buckets) <= squares + 1e-6
    assert squares <= sum(high * high * count for _, high, count in buckets) + 1e-6
    if len(lengths) == 1:
        assert found == pytest.approx(attention_pairs(lengths[0], lengths[0]))


def test_pairs_of_a_part_of_the_prompts_are_in_proportion():
    assert 0 < pairs_of((), lengths_of(700, 700), 100) < pairs_of((), lengths_of(700, 700), 1400)


@given(st.lists(st.integers(0, 6000)), st.lists(st.integers(0, 6000)))
def test_buckets_between_two_looks_hold_what_was_observed_between_them(early: list[int], late: list[int]):
    found = per_bucket(lengths_of(*early), lengths_of(*early, *late))
    assert sum(count for _, _, count in found) == len(late)
    assert all(low < high and count > 0 for low, high, count in found)


def test_a_page_that_was_written_while_it_was_read_makes_a_first_token_decodes_once_at_most():
    """Each prompt's token is there a look before its prompt has ended."""
    pages = [
        EnginePage(
            counters=Counters(prefill_tokens=100.0 * num, decode_tokens=float(num), length_tokens=100.0 * ended),
            lengths=((math.inf, float(ended)),),
        )
        for num, ended in ((0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (3, 2), (3, 3))
    ]
    owed, decode = 0.0, 0.0
    for before, now in pairwise(pages):
        decode += derive(before, now, Role.PREFILL, None, owed=owed)[Phase.DECODE].tokens
        owed = owed_tokens(before, now, Role.PREFILL, owed)
    assert decode == 1


def test_a_restart_is_seen_by_the_start_time_or_by_a_counter_that_fell():
    page = page_of("prefill-2")
    assert page.started_unix_s is not None
    later = replace(page, started_unix_s=page.started_unix_s + 100)
    assert has_restarted(page, later)
    assert not has_restarted(page, replace(page, started_unix_s=page.started_unix_s + 0.2))  # a clock that was set
    silent = replace(page, started_unix_s=None)
    assert has_restarted(silent, replace(page_of("prefill-1"), started_unix_s=None))
    assert not has_restarted(replace(page_of("prefill-1"), started_unix_s=None), silent)
