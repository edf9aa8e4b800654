"""Sampling is a function of (seed, position) and one row of logits."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.sampling import sample, uniform
from engine.types import SamplingParams

LOGITS_V = torch.tensor([0.0, 1.0, 2.0, 3.0]).log()  # probabilities 0, 1/6, 2/6, 3/6


def _counts(params: SamplingParams, draws: int, logits_V: torch.Tensor = LOGITS_V) -> list[int]:
    tokens = [sample(logits_V[None], [params], [position])[0] for position in range(draws)]
    return [tokens.count(token) for token in range(len(logits_V))]


def test_temperature_zero_takes_the_largest_logit() -> None:
    assert sample(LOGITS_V[None], [SamplingParams(seed=9)], [5]) == [3]


def test_same_seed_and_position_draw_the_same_token_in_any_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_RV = torch.randn(6, 500, generator=generator)
    params = [
        SamplingParams(temperature=0.9, top_p=0.9, top_k=k, seed=row) for row, k in enumerate((0, 5, 50, 0, 1, 7))
    ]
    positions = [3, 14, 15, 92, 6, 5]
    together = sample(logits_RV, params, positions)
    alone = [sample(logits_RV[i : i + 1], [params[i]], [positions[i]])[0] for i in reversed(range(6))]
    assert together == alone[::-1]


def test_draws_follow_the_probabilities() -> None:
    counts = _counts(SamplingParams(temperature=1.0, seed=1), 3000)
    assert counts[0] == 0
    assert [round(c / 3000, 1) for c in counts[1:]] == [0.2, 0.3, 0.5]


def test_top_k_two_keeps_the_two_most_likely() -> None:
    counts = _counts(SamplingParams(temperature=1.0, top_k=2, seed=1), 1000)
    assert counts[:2] == [0, 0]
    assert abs(counts[3] / 1000 - 0.6) < 0.05


def test_top_p_stops_at_the_token_that_reaches_it() -> None:
    assert _counts(SamplingParams(temperature=1.0, top_p=0.5, seed=1), 200)[3] == 200
    counts = _counts(SamplingParams(temperature=1.0, top_p=0.51, seed=1), 500)
    assert counts[1] == 0
    assert counts[2] > 0


def test_top_p_finds_a_nucleus_larger_than_the_first_look() -> None:
    flat_V = torch.zeros(2000)
    tokens = {sample(flat_V[None], [SamplingParams(temperature=1.0, top_p=0.5, seed=4)], [i])[0] for i in range(800)}
    assert max(tokens) < 1001  # equal tokens are kept by lower id
    assert max(tokens) > 900


def test_low_temperature_approaches_greedy() -> None:
    assert _counts(SamplingParams(temperature=1e-4, seed=2), 50) == [0, 0, 0, 50]


@given(seed=st.integers(-(2**70), 2**70), position=st.integers(0, 2**40))
def test_uniform_is_in_the_half_open_unit_interval(seed: int, position: int) -> None:
    assert 0.0 <= uniform(seed, position) < 1.0


def test_uniform_is_spread_over_seeds_and_positions() -> None:
    for values in ([uniform(7, i) for i in range(4000)], [uniform(i, 7) for i in range(4000)]):
        assert len(set(values)) == 4000
        assert abs(sum(values) / 4000 - 0.5) < 0.02
