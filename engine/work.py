"""How much work a forward is: FLOPs and bytes from a model's shape and the lengths that were computed. Arithmetic only.

Decided here: the formulas of DESIGN section 7, the same for the meter, the cost models and the planner. Not decided
here: how long the work takes (`engine.cost_model`) and what the device could do (`data/devices.toml`).

Conventions, each counted once and the same everywhere:

- One multiply-add is 2 FLOPs. Norms, rotation, residuals and SwiGLU's gate are left out: one FLOP per value, they are
  0.1% of a 135M model (`phaseline bench meter`), less of larger ones; so are softmax and sampling.
- The context `s` of a token counts the token itself: position p has s = p + 1.
- Weights are read once per forward. The embedding table is not streamed: one row per token is gathered. The head is
  read only by a forward that samples.
- Activations are left out of the bytes: what one kernel leaves for the next stays on the chip, or could.
- A sequence's KV is read once per forward over its whole context, the tokens just written included.
- Recomputed tokens (after a preemption) are work like any other: the device did it.
"""

from __future__ import annotations

from collections.abc import Iterable

from engine.types import ModelConfig, PrefillChunk


def linear_params(model: ModelConfig) -> int:
    """Parameters of all linear layers, without head and embedding: q, k, v, o and the three of SwiGLU, per layer."""
    q_width = model.num_q_heads * model.head_dim
    kv_width = model.num_kv_heads * model.head_dim
    attention = model.hidden_size * (2 * q_width + 2 * kv_width)
    return model.num_layers * (attention + 3 * model.hidden_size * model.intermediate_size)


def head_params(model: ModelConfig) -> int:
    """Parameters of the language-model head; with tied embeddings it is the embedding table itself."""
    return model.vocab_size * model.hidden_size


def norm_params(model: ModelConfig) -> int:
    """Two RMSNorm vectors per layer and a last one, and the biases of q, k and v where the model has them.

    An output bias, which few of those have, is left out: hidden_size values a layer.
    """
    norms = (2 * model.num_layers + 1) * model.hidden_size
    biases = model.num_layers * (model.num_q_heads + 2 * model.num_kv_heads) * model.head_dim
    return norms + (biases if model.attention_bias else 0)


def weight_bytes(model: ModelConfig, dtype_bytes: float) -> float:
    """Bytes of weights that a sampling forward streams: linears, norms and head, without an untied embedding table."""
    return (linear_params(model) + norm_params(model) + head_params(model)) * dtype_bytes


def resident_weight_bytes(model: ModelConfig, dtype_bytes: float) -> float:
    """Bytes that the weights take in memory: `weight_bytes`, and the embedding table when it is not the head."""
    embedding = 0 if model.tie_word_embeddings else head_params(model)
    return weight_bytes(model, dtype_bytes) + embedding * dtype_bytes


def kv_bytes_per_token(model: ModelConfig, dtype_bytes: float) -> float:
    """Bytes of one token's keys and values over all layers."""
    return 2 * model.num_layers * model.num_kv_heads * model.head_dim * dtype_bytes


def attention_pairs(chunk_tokens: int, context: int) -> int:
    """Query-key pairs of a causal chunk of `chunk_tokens` tokens whose last one has `context` tokens to attend to.

    The tokens have contexts context - chunk_tokens + 1 .. context, whose sum is c*s - c*(c-1)/2.
    """
    return chunk_tokens * context - chunk_tokens * (chunk_tokens - 1) // 2


def prefill_sums(chunks: Iterable[PrefillChunk]) -> tuple[int, int, int, int]:
    """Of the chunks packed into one forward: tokens, query-key pairs, contexts, and tokens that are sampled."""
    tokens = pairs = contexts = sampled = 0
    for chunk in chunks:
        size = len(chunk.token_ids)
        context = chunk.start + size
        tokens += size
        pairs += attention_pairs(size, context)
        contexts += context
        sampled += chunk.sample is not None
    return tokens, pairs, contexts, sampled


def prefill_flops(model: ModelConfig, chunk_tokens: int, context: int, sampled_tokens: int) -> float:
    """FLOPs of one chunk: 2*c*P_linear + 4*q_heads*head_dim*layers*(c*s - c*(c-1)/2) + 2*vocab*hidden per sample."""
    return ModelWork(model).prefill_flops(chunk_tokens, attention_pairs(chunk_tokens, context), sampled_tokens)


def decode_flops(model: ModelConfig, context_sum: int, batch: int) -> float:
    """FLOPs of one decode step of `batch` sequences whose contexts add up to `context_sum`: each is a chunk of one."""
    return ModelWork(model).decode_flops(context_sum, batch)


def prefill_bytes(
    model: ModelConfig,
    weight_dtype_bytes: float,
    kv_dtype_bytes: float,
    *,
    chunk_tokens: int,
    context_sum: int,
    sampled_tokens: int,
) -> float:
    """Weights once (head only when it samples), an embedding row per token, KV read of the contexts, KV written."""
    work = ModelWork(model, weight_dtype_bytes, kv_dtype_bytes)
    return work.prefill_bytes(chunk_tokens, context_sum, sampled_tokens)


def decode_bytes(
    model: ModelConfig, weight_dtype_bytes: float, kv_dtype_bytes: float, *, context_sum: int, batch: int
) -> float:
    """All weights once, and per sequence an embedding row, its KV read and one token's KV written."""
    return ModelWork(model, weight_dtype_bytes, kv_dtype_bytes).decode_bytes(context_sum, batch)


class ModelWork:
    """The coefficients of one model at one pair of dtypes, computed once, so that a step costs a few multiplications.

    A forward may pack several chunks: `pairs` and `context_sum` are then sums over them (`attention_pairs` of each).
    """

    __slots__ = (
        "body_bytes",
        "flops_per_pair",
        "flops_per_sample",
        "flops_per_token",
        "head_bytes",
        "kv_token_bytes",
        "model",
        "row_bytes",
    )

    def __init__(self, model: ModelConfig, weight_dtype_bytes: float = 4, kv_dtype_bytes: float = 4) -> None:
        self.model = model
        self.flops_per_token = 2.0 * linear_params(model)
        self.flops_per_pair = 4.0 * model.num_q_heads * model.head_dim * model.num_layers
        self.flops_per_sample = 2.0 * head_params(model)
        body, last_norm = linear_params(model) + norm_params(model), model.hidden_size
        self.body_bytes = float((body - last_norm) * weight_dtype_bytes)
        self.head_bytes = float((head_params(model) + last_norm) * weight_dtype_bytes)
        self.row_bytes = float(model.hidden_size * weight_dtype_bytes)
        self.kv_token_bytes = float(kv_bytes_per_token(model, kv_dtype_bytes))

    def prefill_flops(self, tokens: int, pairs: int, sampled_tokens: int) -> float:
        return self.flops_per_token * tokens + self.flops_per_pair * pairs + self.flops_per_sample * sampled_tokens

    def prefill_bytes(self, tokens: int, context_sum: int, sampled_tokens: int) -> float:
        head = self.head_bytes if sampled_tokens else 0.0
        return self.body_bytes + head + self.row_bytes * tokens + self.kv_token_bytes * (context_sum + tokens)

    def decode_flops(self, context_sum: int, batch: int) -> float:
        return (self.flops_per_token + self.flops_per_sample) * batch + self.flops_per_pair * context_sum

    def decode_bytes(self, context_sum: int, batch: int) -> float:
        weights = self.body_bytes + self.head_bytes + self.row_bytes * batch
        return weights + self.kv_token_bytes * (context_sum + batch)
