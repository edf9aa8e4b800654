"""What is different about the slow ones: a planted cause comes first, and what may be chance is not told."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.differences import (
    LEAST_DIFFERENCE,
    LEAST_RECORDS,
    MAX_P_VALUE,
    cached_bin,
    differences,
    p_value,
    token_bin,
)
from control.types.requests import RequestMove, RequestRecord
from tests.control.records import record

LOST = RequestMove(kind="failover", from_worker="w1", to_worker="w2", at_s=1.0)
#: (dimension, value) that makes requests slow -> what makes a request so.
CAUSES: dict[tuple[str, str], dict[str, Any]] = {
    ("route rule", "short_local"): {"rule": "short_local"},
    ("prefill worker", "p1"): {"prefill_worker": "p1"},
    ("decode worker", "d3"): {"decode_worker": "d3"},
    ("prompt length", "4096-8191 tokens"): {"prompt_tokens": 5000, "cached_tokens": 0},
    ("output length", "512-1023 tokens"): {"output_tokens": 700},
    ("cached share", "75%-100% cached"): {"prompt_tokens": 100, "cached_tokens": 80},
    ("class", "batch"): {"priority": 10},
    ("API key", "nightly"): {"api_key_name": "nightly"},
    ("gateway", "gw-2"): {"gateway_id": "gw-2"},
    ("failover", "lost a worker"): {"moves": (LOST,)},
}


def mixed(chance: random.Random) -> RequestRecord:
    """A request of a fleet in which nothing goes with anything."""
    prompt_tokens = chance.choice((40, 100, 300, 1000, 3000))
    return record(
        rule=chance.choice(("remote", "cached_local", "control_arm")),
        prefill_worker=chance.choice(("p0", "p2", "p3")),
        decode_worker=chance.choice(("d0", "d1", "d2", "d4", "d5")),
        prompt_tokens=prompt_tokens,
        cached_tokens=int(prompt_tokens * chance.choice((0.0, 0.1, 0.3, 0.6))),
        output_tokens=chance.choice((20, 50, 100, 300)),
        api_key_name=chance.choice(("shop", "support")),
        gateway_id=chance.choice(("gw-0", "gw-1")),
        weight=chance.choice((1.0, 1.0, 1.0, 4.0)),
    )


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(CAUSES)), st.integers(0, 10_000), st.floats(0.5, 1.0), st.floats(0.0, 0.05))
def test_a_planted_cause_ranks_first(cause: tuple[str, str], seed: int, hit: float, common: float) -> None:
    """`hit`: of the slow ones, those that it made slow; `common`: how frequent it is among the rest."""
    chance = random.Random(seed)

    def some(count: int, share: float) -> list[RequestRecord]:
        return [
            replace(mixed(chance), **CAUSES[cause]) if index < share * count else mixed(chance)
            for index in range(count)
        ]

    found = differences(some(200, hit), some(1500, common))
    assert (found[0].dimension, found[0].value) == cause
    assert all(each.difference >= LEAST_DIFFERENCE and each.p_value <= MAX_P_VALUE for each in found)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 100_000))
def test_two_samples_of_the_same_traffic_do_not_differ(seed: int) -> None:
    chance = random.Random(seed)
    found = differences([mixed(chance) for _ in range(200)], [mixed(chance) for _ in range(1000)])
    assert len(found) <= 1  # one in a hundred tries may show something by chance


def test_too_few_requests_say_nothing() -> None:
    slow = [record(decode_worker="d9")] * (LEAST_RECORDS - 1)
    assert differences(slow, [record()] * 1000) == ()
    assert differences([record(decode_worker="d9")] * 100, [record()] * 3) == ()


def test_shares_are_of_requests_and_not_of_records() -> None:
    """Of the rest, one record in ten stands for nine requests of another worker."""
    slow = [record(decode_worker="d9")] * 50
    rest = [record(decode_worker="d9")] * 90 + [record(decode_worker="d1", weight=91.0)] * 10
    found = differences(slow, rest)
    assert (found[0].value, found[0].share, found[0].rest_share) == ("d9", 1.0, pytest.approx(0.09))


def test_a_few_heavy_records_are_less_certain_than_many_light_ones() -> None:
    def of(weight: float, count: int) -> list[RequestRecord]:
        half = count // 2
        return [record(rule="a", weight=weight)] * half + [record(rule="b", weight=weight)] * (count - half)

    slow = [record(rule="a")] * 60 + [record(rule="b")] * 20
    heavy = [replace(each, weight=1000.0) for each in of(1.0, 2)] + of(1.0, 100)
    assert [each.value for each in differences(slow, of(1.0, 2000))] == ["a"]
    assert differences(slow, heavy) == ()


def test_what_everybody_has_is_no_difference() -> None:
    assert p_value(1.0, 50, 1.0, 500) == 1.0
    assert differences([record()] * 50, [record()] * 500) == ()


@pytest.mark.parametrize(
    ("tokens", "words"),
    [(0, "under 32 tokens"), (31, "under 32 tokens"), (32, "32-63 tokens"), (1023, "512-1023 tokens"),
     (65_535, "32768-65535 tokens"), (65_536, "65536 tokens and over")],
)  # fmt: skip
def test_lengths_are_told_by_powers_of_two(tokens: int, words: str) -> None:
    assert token_bin(tokens) == words


@pytest.mark.parametrize(
    ("cached", "words"),
    [
        (0, "nothing cached"),
        (1, "0%-25% cached"),
        (25, "25%-50% cached"),
        (99, "75%-100% cached"),
        (100, "75%-100% cached"),
    ],
)
def test_cached_shares_are_told_by_quarters(cached: int, words: str) -> None:
    assert cached_bin(record(prompt_tokens=100, cached_tokens=cached)) == words
