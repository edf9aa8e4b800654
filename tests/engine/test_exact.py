"""Exact mode: logits have the same bits whatever the batch, chunk, prefix hit, handoff or recomputation."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_builders import Replay, blocks_for, logits_at_every_position, random_ids, replay_at_random

from engine.convert import make_tiny_model
from engine.exact import KernelShape, exact_shape, fast_shape, probe_attention, probe_exact
from engine.linear import linear
from engine.runner import TorchRunner


def _replay_all(runner: TorchRunner, lengths: list[int], rng: random.Random, largest_chunk: int) -> list[Replay]:
    free = list(range(runner.pool.num_blocks))
    rng.shuffle(free)
    sequences = []
    for length in lengths:
        ids = random_ids(runner, length, rng)
        alone = [free.pop() for _ in range(blocks_for(runner, length))]
        table = [free.pop() for _ in range(blocks_for(runner, length))]
        logits_SV = logits_at_every_position(runner, ids, alone)
        sequence = Replay(ids, table, logits_SV)
        if rng.random() < 0.3:  # a prefix hit, or a handoff: whole blocks arrive as bytes
            held = rng.randint(0, (length - 1) // runner.pool.layout.block_tokens)
            runner.pool.scatter(table[:held], runner.pool.gather(alone[:held]))
            sequence.done = held * runner.pool.layout.block_tokens
        sequences.append(sequence)
    replay_at_random(runner, sequences, rng, largest_chunk)
    return sequences


@pytest.fixture(scope="module", params=[16, 32])
def tiny_runner(tiny_folder: Path, request: pytest.FixtureRequest) -> TorchRunner:
    return TorchRunner.load(tiny_folder, num_blocks=600, block_tokens=request.param)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), lengths=st.lists(st.integers(1, 700), min_size=1, max_size=5))
def test_tiny_logits_do_not_depend_on_batch_chunks_or_prefix(
    tiny_runner: TorchRunner, seed: int, lengths: list[int]
) -> None:
    sequences = _replay_all(tiny_runner, lengths, random.Random(seed), largest_chunk=300)
    assert [line for s in sequences for line in s.wrong] == []


@pytest.mark.parametrize("options", [{"tied": True}, {"attention_bias": True}])
def test_variants_of_the_architecture_are_exact_too(tmp_path: Path, options: dict[str, bool]) -> None:
    runner = TorchRunner.load(make_tiny_model(tmp_path / "variant", seed=3, **options), num_blocks=200)
    sequences = _replay_all(runner, [70, 150, 9], random.Random(5), largest_chunk=40)
    assert [line for s in sequences for line in s.wrong] == []


@pytest.mark.integration
def test_real_logits_do_not_depend_on_batch_chunks_or_prefix(real_folder: Path) -> None:
    runner = TorchRunner.load(real_folder, num_blocks=400)
    sequences = _replay_all(runner, [40, 300, 7, 580, 129, 64], random.Random(11), largest_chunk=200)
    assert [line for s in sequences for line in s.wrong] == []
    assert sum(s.checked for s in sequences) > 50


@pytest.mark.integration
def test_every_row_count_of_the_real_linears_agrees(real_folder: Path) -> None:
    runner = TorchRunner.load(real_folder, num_blocks=4)
    first, least = runner.model.weights.layers[0], runner.model.shape.min_rows
    generator = torch.Generator().manual_seed(3)
    for weight_KN in (first.qkv_EY, first.out_XE, first.gate_up_EF, first.down_FE):
        x_MK = torch.randn(512, weight_KN.shape[0], generator=generator)
        whole_MN = linear(x_MK, weight_KN)
        for rows in [*range(least, 65), *range(72, 513, 8)]:
            start = (rows * 37) % (513 - rows)
            assert torch.equal(linear(x_MK[start : start + rows], weight_KN), whole_MN[start : start + rows]), rows


def test_probe_finds_the_tails_that_the_shape_then_uses() -> None:
    attn_rows, tails = probe_attention(num_q_heads=4, num_kv_heads=2, head_dim=16) or (0, ())
    assert attn_rows >= 1
    assert tails[-1] == 512


def test_exact_shape_sets_one_thread(tiny_folder: Path) -> None:
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    shape = exact_shape([weight], num_q_heads=4, num_kv_heads=2, head_dim=16)
    assert torch.get_num_threads() == 1
    assert shape.exact
    assert shape.min_rows == probe_exact([weight])


@pytest.mark.parametrize(("length", "padded"), [(1, 64), (64, 64), (65, 192), (193, 512), (512, 512), (513, 576)])
def test_kv_length_goes_up_to_the_next_allowed_tail(length: int, padded: int) -> None:
    shape = KernelShape(exact=True, min_rows=2, attn_rows=4, kv_tails=(64, 192, 512))
    assert shape.kv_length(length) == padded


@pytest.mark.parametrize(("rows", "padded"), [(1, 2), (2, 2), (5, 5), (8, 8), (9, 16), (57, 64), (65, 96), (512, 512)])
def test_rows_are_padded_to_few_different_counts(rows: int, padded: int) -> None:
    assert KernelShape(exact=True, min_rows=2, attn_rows=4, kv_tails=(512,)).num_rows(rows) == padded


def test_fast_shape_pads_to_whole_blocks_only() -> None:
    assert fast_shape(16).kv_length(33) == 48
    assert fast_shape(16).num_rows(1) == 1
