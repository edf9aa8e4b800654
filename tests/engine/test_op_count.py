"""The meter against torch's own operators, over steps of a real core: a count that shares no code with engine.work."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

import pytest

from engine.bench._mixes import Counted, CountedRunner, steps
from engine.bench._vllm_work import vllm_work
from engine.convert import make_tiny_model
from engine.types import ModelConfig, Phase


def counted(folder: Path, page: Path, *, carry_out: bool, seed: int = 3, number: int = 25) -> list[Counted]:
    runner = CountedRunner.load(folder, num_blocks=400, mode="fast")
    runner.count(carry_out=carry_out)
    return [each for step in islice(steps(runner, page, random.Random(seed), 96), number) for each in step]


@pytest.mark.parametrize("tied", [True, False])
def test_the_meter_equals_the_operators_in_both_phases(tmp_path: Path, tied: bool) -> None:
    found = counted(make_tiny_model(tmp_path / "model", 4, tied=tied), tmp_path / "w.meter", carry_out=True)
    assert {each.phase for each in found} == set(Phase)
    assert any(each.num_cached for each in found)
    for each in found:
        assert each.meter_flops == pytest.approx(each.ops.flops, rel=1e-9)
        assert each.meter_bytes == pytest.approx(each.ops.bytes, rel=1e-9)


def test_what_is_counted_does_not_depend_on_carrying_it_out(tiny_folder: Path, tmp_path: Path) -> None:
    computed, skipped = (
        counted(tiny_folder, tmp_path / f"{carry_out}.meter", carry_out=carry_out, number=10)
        for carry_out in (True, False)
    )
    assert [each.ops for each in computed] == [each.ops for each in skipped]


def test_vllm_bills_each_token_of_a_prompt_the_whole_context() -> None:
    model = ModelConfig(
        model_id="m", vocab_size=0, hidden_size=8, intermediate_size=0, num_layers=1, num_q_heads=2, num_kv_heads=1,
        head_dim=4, max_context=100, eos_token_ids=(),
    )  # fmt: skip
    linears = 2 * 10 * 8 * (2 * 8 + 2 * 4)
    assert vllm_work(model, [(10, 10)]).flops == linears + 4 * 8 * 10 * 10
    assert vllm_work(model, [(1, 10)]).flops == linears / 10 + 4 * 8 * 10
