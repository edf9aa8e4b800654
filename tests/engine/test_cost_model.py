from __future__ import annotations

import pytest
from core_builders import MODEL
from test_work import LLAMA_70B

from engine.cost_model import CostModel, SeededTokens, paced_result, seeded_token
from engine.types import DecodeItem, Phase, PrefillChunk, SamplingParams, StepPlan

H100_70B = CostModel(
    model=LLAMA_70B,
    peak_flops=1.979e15,
    peak_bytes_per_s=3.35e12,
    weight_dtype_bytes=1,
    kv_dtype_bytes=1,
    compute_efficiency=0.6,
    bandwidth_efficiency=0.8,
)


def test_prefill_is_bound_by_compute_and_decode_by_bandwidth():
    cost = H100_70B
    prefill_s = cost.prefill_seconds(1020, 1020 * 1021 // 2, 1020, 1) - cost.prefill_overhead_s
    assert prefill_s == pytest.approx(cost.work.prefill_flops(1020, 1020 * 1021 // 2, 1) / (1.979e15 * 0.6))
    decode_s = cost.decode_seconds(8 * 1200, 8) - cost.decode_overhead_s
    assert decode_s == pytest.approx(cost.work.decode_bytes(8 * 1200, 8) / (3.35e12 * 0.8))


def test_the_articles_profile_is_within_reach():
    assert 0.1 < H100_70B.prefill_seconds(1020, 1020 * 1021 // 2, 1020, 1) < 0.2
    assert 0.025 < H100_70B.decode_seconds(16 * 1200, 16) < 0.035


def test_a_mixed_step_times_its_two_forwards_one_after_the_other():
    sampling = SamplingParams(seed=1)
    plan = StepPlan(1, (PrefillChunk(1, (5,) * 100, 0, (0,), sampling),), (DecodeItem(2, 3, 49, (1,), sampling),))
    prefill, decode = H100_70B.step_timings(plan, 10.0)
    assert (prefill.phase, decode.phase) == (Phase.PREFILL, Phase.DECODE)
    assert prefill.start_s == 10.0
    assert prefill.end_s == decode.start_s == 10.0 + H100_70B.prefill_seconds(100, 5050, 100, 1)
    assert decode.end_s == pytest.approx(decode.start_s + H100_70B.decode_seconds(50, 1))


def test_a_handoff_takes_its_bytes_over_the_link():
    seconds = H100_70B.handoff_seconds(1000)
    assert seconds == pytest.approx(0.002 + 1000 * 163_840 / 40e9)


@pytest.mark.parametrize(
    ("field", "value"),
    [("peak_flops", 0), ("peak_bytes_per_s", float("nan")), ("compute_efficiency", 1.1), ("decode_overhead_s", -1)],
)
def test_a_value_out_of_bounds_is_named(field, value):
    values = {"model": MODEL, "peak_flops": 1e12, "peak_bytes_per_s": 1e11, field: value}
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        CostModel(**values)


def test_seeded_tokens_depend_on_seed_and_position_only():
    tokens = [seeded_token(5, position, 1000) for position in range(200)]
    assert tokens == [seeded_token(5, position, 1000) for position in range(200)]
    assert tokens != [seeded_token(6, position, 1000) for position in range(200)]
    assert len(set(tokens)) > 150
    assert all(0 <= token < 1000 for token in tokens)


def test_seeded_tokens_never_end_a_request():
    tokens = SeededTokens(4, avoid=(0, 2))
    assert {tokens.token(1, position) for position in range(100)} == {1, 3}


def test_a_paced_result_samples_the_position_after_the_last_token():
    sampling = SamplingParams(seed=9)
    plan = StepPlan(
        1,
        (PrefillChunk(1, (5, 6), 2, (0,), sampling), PrefillChunk(3, (5, 6), 0, (2,), None)),
        (DecodeItem(2, 3, 49, (1,), sampling),),
    )
    tokens = SeededTokens(MODEL.vocab_size)
    assert paced_result(plan, H100_70B, tokens, 0.0).tokens == {1: tokens.token(9, 4), 2: tokens.token(9, 50)}
