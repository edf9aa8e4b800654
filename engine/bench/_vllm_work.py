"""What vLLM's own counters would say of a forward: the formulas of its `--enable-mfu-metrics`, for a dense model.

Source: vllm/v1/metrics/perf.py of vllm-project/vllm at commit 00cee63e04bf (AttentionMetrics, FfnMetrics,
UnembedMetrics), one GPU, no quantization, no sliding window. Written anew from that reading; the names are ours.

What differs from `engine.work`, all of it vLLM's choice: every token of a chunk is billed the whole context of its last
one (tokens x context, no causal triangle); each chunk is billed logits, also one that does not end its prompt; bytes
include every activation that goes in and out of an operator; and one counter per worker takes both phases. Here each
phase is counted on its own, which its counters cannot say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.types import ModelConfig


@dataclass(frozen=True, slots=True)
class VllmWork:
    """Its three counters, the bytes read and written as one."""

    flops: float
    bytes: float


def vllm_work(model: ModelConfig, requests: Sequence[tuple[int, int]], dtype_bytes: float = 4.0) -> VllmWork:
    """One forward of `requests` (tokens, context after them), each with one row of logits."""
    hidden, layers, vocab = model.hidden_size, model.num_layers, model.vocab_size
    q, kv = model.num_q_heads * model.head_dim, model.num_kv_heads * model.head_dim
    tokens, contexts = sum(count for count, _ in requests), sum(context for _, context in requests)
    met = sum(count * context for count, context in requests)
    wide = model.intermediate_size
    flops = layers * (2 * tokens * hidden * (2 * q + 2 * kv) + 4 * q * met + 6 * hidden * wide * tokens)
    flops += 2 * len(requests) * hidden * vocab
    weights = layers * (hidden * (2 * q + 2 * kv) + 3 * hidden * wide) + hidden * vocab
    read = layers * tokens * (hidden + 2 * q + hidden + 3 * wide) + layers * 2 * contexts * kv + len(requests) * hidden
    written = layers * tokens * (q + 2 * kv + 2 * kv + hidden + 3 * wide + hidden) + len(requests) * vocab
    return VllmWork(float(flops), dtype_bytes * (weights + read + written))
