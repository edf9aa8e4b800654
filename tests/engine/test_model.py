"""The decoder against transformers, and TorchRunner's contract."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from model_builders import GREEDY, blocks_for, logits_at_every_position, random_ids

from engine.bench.vs_transformers import differences, engine_generate, load_transformers, transformers_generate
from engine.convert import make_tiny_model
from engine.errors import ExactModeUnavailable, KvPoolError, UnsupportedModelError
from engine.kvpool import KvPool
from engine.model import load_model
from engine.runner import TorchRunner
from engine.types import DecodeItem, Phase, PrefillChunk, SamplingParams, StepPlan

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "untied": {},
    "tied": {"tied": True},
    "biased": {"attention_bias": True},
    "llama3 rope": {"rope": LLAMA3_ROPE},
    "linear rope": {"rope": {"rope_type": "linear", "factor": 4.0}},
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_logits_equal_transformers(tmp_path: Path, name: str, mode: str) -> None:
    folder = make_tiny_model(tmp_path / "model", 4, **VARIANTS[name])
    runner = TorchRunner.load(folder, num_blocks=32, mode=mode)
    ids = random_ids(runner, 300, random.Random(name))
    ours = logits_at_every_position(runner, ids, range(blocks_for(runner, 300)))
    with torch.inference_mode():
        theirs = load_transformers(folder)(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_tiny_greedy_tokens_equal_transformers(tiny_folder: Path, mode: str) -> None:
    runner = TorchRunner.load(tiny_folder, num_blocks=300, mode=mode)
    rng = random.Random(2)
    prompts = [random_ids(runner, rng.randint(1, 120), rng) for _ in range(24)]
    _compare_greedy(runner, tiny_folder, prompts, 20)


@pytest.mark.integration
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_real_greedy_tokens_equal_transformers(real_folder: Path, mode: str) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(real_folder / "tokenizer.json"))
    texts = ["The capital of France is", "def fibonacci(n):\n", "Once upon a time, in a small village,"]
    texts += ["List three uses of copper. " * 12, "1 2 3 4 5 6 7"]
    runner = TorchRunner.load(real_folder, num_blocks=100, mode=mode)
    _compare_greedy(runner, real_folder, [tokenizer.encode(text).ids for text in texts], 20)


def _compare_greedy(runner: TorchRunner, folder: Path, prompts: list[list[int]], count: int) -> None:
    """Equal tokens, but for near-ties of transformers itself, each of which is printed."""
    reference = load_transformers(folder)
    outputs = [count] * len(prompts)
    ours = engine_generate(runner, prompts, outputs).outputs
    theirs = [transformers_generate(reference, [prompt], [count]).outputs[0] for prompt in prompts]
    lines = differences(reference, prompts, ours, theirs)
    print(*lines, sep="\n")
    assert [line for line in lines if not line.startswith("near-tie")] == []


@pytest.fixture(scope="module")
def runner(tiny_folder: Path) -> TorchRunner:
    return TorchRunner.load(tiny_folder, num_blocks=64)


def test_an_unfinished_prompt_gives_no_token(runner: TorchRunner) -> None:
    ids = tuple(random_ids(runner, 40, random.Random(1)))
    table = (3, 1, 2)
    first = runner.run(StepPlan(step_id=1, prefill=(PrefillChunk(7, ids[:25], 0, table, None),)))
    assert first.tokens == {}
    last = runner.run(StepPlan(step_id=2, prefill=(PrefillChunk(7, ids[25:], 25, table, GREEDY),)))
    whole = runner.run(StepPlan(step_id=3, prefill=(PrefillChunk(7, ids, 0, (4, 5, 6), GREEDY),)))
    assert last.tokens == whole.tokens


def test_a_mixed_step_runs_two_timed_forwards_prefill_first(runner: TorchRunner) -> None:
    ids = tuple(random_ids(runner, 20, random.Random(1)))
    runner.run(StepPlan(step_id=1, prefill=(PrefillChunk(1, ids, 0, (0, 1), GREEDY),)))
    plan = StepPlan(
        step_id=2,
        prefill=(PrefillChunk(2, ids, 0, (2, 3), GREEDY),),
        decode=(DecodeItem(1, 5, 20, [0, 1], GREEDY),),
    )
    result = runner.run(plan)
    assert set(result.tokens) == {1, 2}
    prefill, decode = result.timings
    assert (prefill.phase, decode.phase) == (Phase.PREFILL, Phase.DECODE)
    assert prefill.start_s < prefill.end_s <= decode.start_s < decode.end_s
    assert prefill.cpu_s > 0


def test_a_sampled_token_is_the_same_after_recomputation(runner: TorchRunner) -> None:
    warm = SamplingParams(temperature=1.0, top_p=0.95, seed=42)
    ids = random_ids(runner, 30, random.Random(3))
    token = runner.run(StepPlan(step_id=1, prefill=(PrefillChunk(1, tuple(ids), 0, (0, 1, 2), warm),))).tokens[1]
    decoded = runner.run(StepPlan(step_id=2, decode=(DecodeItem(1, token, 30, (0, 1, 2), warm),))).tokens[1]
    again = PrefillChunk(1, (*ids, token), 0, (9, 8, 7), warm)
    assert runner.run(StepPlan(step_id=3, prefill=(again,))).tokens[1] == decoded


def test_bfloat16_runs_the_same_code(tiny_folder: Path) -> None:
    runner = TorchRunner.load(tiny_folder, num_blocks=16, mode="fast", dtype="bfloat16")
    ids = tuple(random_ids(runner, 50, random.Random(3)))
    result = runner.run(StepPlan(step_id=1, prefill=(PrefillChunk(1, ids, 0, (0, 1, 2, 3), GREEDY),)))
    decode = DecodeItem(1, result.tokens[1], 50, (0, 1, 2, 3), GREEDY)
    assert 1 in runner.run(StepPlan(step_id=2, decode=(decode,))).tokens
    assert runner.pool.layout.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mode": "slow"}, UnsupportedModelError, "'slow'"),
        ({"dtype": "int8"}, UnsupportedModelError, "'int8'"),
        ({"mode": "exact", "dtype": "bfloat16"}, ExactModeUnavailable, "bfloat16"),
    ],
)
def test_bad_load_options_are_named(
    tiny_folder: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load_model(tiny_folder, **options)


def test_a_pool_of_another_model_is_refused(runner: TorchRunner, tmp_path: Path) -> None:
    other = load_model(make_tiny_model(tmp_path / "other", 9))
    with pytest.raises(KvPoolError, match="does not fit"):
        TorchRunner(runner.model, KvPool.allocate(other.kv_layout(), 4))


def test_a_table_too_short_for_its_positions_is_refused(runner: TorchRunner) -> None:
    with pytest.raises(KvPoolError, match="do not fit a table of 1 blocks"):
        runner.run(StepPlan(step_id=1, decode=(DecodeItem(1, 5, 16, (0,), GREEDY),)))


def test_blocks_move_between_pools_as_bytes(runner: TorchRunner) -> None:
    layout = runner.pool.layout
    memory = bytearray(layout.block_bytes * 4)
    shared = KvPool.from_buffer(layout, 4, memory)
    shared.scatter([3, 1], runner.pool.gather([0, 2]))
    assert torch.equal(shared.gather([1]), runner.pool.gather([2]))
    assert memory[: layout.block_bytes] == bytes(layout.block_bytes)
    with pytest.raises(KvPoolError, match="too small"):
        KvPool.from_buffer(layout, 5, memory)
    with pytest.raises(KvPoolError, match=r"4\.\.4 is outside 0\.\.3"):
        shared.gather([4])
