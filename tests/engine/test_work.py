from __future__ import annotations

import pytest

from engine import work
from engine.types import ModelConfig

SMALL = ModelConfig(
    model_id="small",
    vocab_size=100,
    hidden_size=8,
    intermediate_size=16,
    num_layers=2,
    num_q_heads=2,
    num_kv_heads=1,
    head_dim=4,
    max_context=64,
)
LLAMA_70B = ModelConfig(
    model_id="llama-3.1-70b",
    vocab_size=128_256,
    hidden_size=8192,
    intermediate_size=28_672,
    num_layers=80,
    num_q_heads=64,
    num_kv_heads=8,
    head_dim=128,
    max_context=131_072,
    tie_word_embeddings=False,
)


def test_linear_params_count_each_matrix_once():
    per_layer = 8 * 8 + 8 * 4 + 8 * 4 + 8 * 8 + 3 * 8 * 16  # q, k, v, o, SwiGLU
    assert work.linear_params(SMALL) == 2 * per_layer


def test_a_70b_has_the_published_size():
    assert work.resident_weight_bytes(LLAMA_70B, 1) == pytest.approx(70.55e9, rel=1e-3)
    assert work.kv_bytes_per_token(LLAMA_70B, 1) == 163_840


@pytest.mark.parametrize(("chunk", "context"), [(1, 1), (1, 9), (4, 4), (3, 10), (16, 33)])
def test_attention_pairs_equal_a_count_of_unmasked_pairs(chunk, context):
    queries = range(context - chunk, context)
    assert work.attention_pairs(chunk, context) == sum(1 for q in queries for k in range(context) if k <= q)


def test_prefill_flops_follow_the_formula():
    c, s = 3, 10
    expected = 2 * c * work.linear_params(SMALL) + 4 * 2 * 4 * 2 * (c * s - c * (c - 1) / 2) + 2 * 100 * 8
    assert work.prefill_flops(SMALL, c, s, 1) == expected


def test_a_chunked_prompt_costs_what_a_whole_one_costs():
    whole = work.prefill_flops(SMALL, 30, 30, 1)
    chunks = work.prefill_flops(SMALL, 16, 16, 0) + work.prefill_flops(SMALL, 14, 30, 1)
    assert chunks == whole


def test_a_decode_step_is_one_chunk_of_one_token_per_sequence():
    contexts = [5, 17]
    as_chunks = sum(work.prefill_flops(SMALL, 1, context, 1) for context in contexts)
    assert work.decode_flops(SMALL, sum(contexts), 2) == as_chunks


def test_decode_bytes_are_weights_once_plus_embedding_rows_plus_kv_read_and_written():
    weights, rows, kv = work.weight_bytes(SMALL, 2), 2 * 8 * 2, (22 + 2) * 2 * 2 * 1 * 4
    assert work.decode_bytes(SMALL, 2, 1, context_sum=22, batch=2) == weights + rows + kv


def test_a_prefill_that_does_not_sample_leaves_the_head_alone():
    sampled = work.prefill_bytes(SMALL, 2, 2, chunk_tokens=4, context_sum=4, sampled_tokens=1)
    unsampled = work.prefill_bytes(SMALL, 2, 2, chunk_tokens=4, context_sum=4, sampled_tokens=0)
    assert sampled - unsampled == (100 * 8 + 8) * 2  # and the norm before it


def test_tied_embeddings_are_resident_once():
    untied = ModelConfig(**{f: getattr(SMALL, f) for f in SMALL.__struct_fields__} | {"tie_word_embeddings": False})
    assert work.resident_weight_bytes(untied, 2) - work.resident_weight_bytes(SMALL, 2) == 100 * 8 * 2
