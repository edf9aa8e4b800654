"""The Llama decoder: RMSNorm, rotary embedding, grouped-query attention, SwiGLU, tied or untied head.

One forward takes the tokens of many sequences as rows, writes their KV into the paged pool and returns the logits of
the rows that are asked for. Prefill and decode differ only in the attention object that is passed in. Not decided
here: how KV is gathered and masked (engine/attention.py), which kernel multiplies (engine/linear.py), what is sampled.

Shape suffixes: T = tokens (rows, padded), E = hidden, Q = query heads, H = KV heads, D = head dim, X = Q * D,
Y = (Q + 2H) * D, F = intermediate, V = vocabulary, S = positions, R = rows with logits
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.attention import Attention
from engine.errors import ExactModeUnavailable, UnsupportedModelError
from engine.exact import KernelShape, exact_shape, fast_shape
from engine.kvpool import TORCH_DTYPES, KvPool
from engine.linear import linear
from engine.loader import LayerWeights, Weights, load_weights, weights_digest
from engine.model_config import read_model_config
from engine.types import KvLayout, ModelConfig


class LlamaModel:
    """Weights, rotary table and kernel bounds; holds no state of any request."""

    def __init__(self, config: ModelConfig, weights: Weights, shape: KernelShape, digest: str) -> None:
        self.config = config
        self.weights = weights
        self.shape = shape
        self.digest = digest
        self.device, self.dtype = weights.embed_VE.device, weights.embed_VE.dtype
        self._rotary_SD = rotary_table(config).to(self.device)

    def kv_layout(self, block_tokens: int = 16) -> KvLayout:
        """Layout of a pool for this model; two workers with equal layouts can exchange KV."""
        return KvLayout(
            model_id=self.config.model_id,
            weights_digest=self.digest,
            dtype=str(self.dtype).removeprefix("torch."),
            num_layers=self.config.num_layers,
            block_tokens=block_tokens,
            num_kv_heads=self.config.num_kv_heads,
            head_dim=self.config.head_dim,
        )

    @torch.inference_mode()
    def forward(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int],
        slots: Sequence[int],
        attention: Attention,
        pool: KvPool,
        logits_of: Sequence[int],
    ) -> Tensor:
        """Compute rows of tokens; row i writes its KV to `slots[i]`. Returns logits of rows `logits_of`: [R, V].

        Rows are padded up to `shape.num_rows`; padded rows repeat token 0 and touch no KV.
        """
        num_rows, real = self.shape.num_rows(len(token_ids)), len(token_ids)
        padding = [0] * (num_rows - real)
        x_TE = F.embedding(self._index([*token_ids, *padding]), self.weights.embed_VE)
        rotary_T1D = self._rotary_SD[self._index([*positions, *padding])].unsqueeze(1)
        slots_T = self._index(slots)
        for i, layer in enumerate(self.weights.layers):
            h_TE = rms_norm(x_TE, layer.attn_norm_E, self.config.rms_norm_eps)
            x_TE = x_TE + self._attend(i, layer, h_TE, rotary_T1D, slots_T, attention, pool)
            x_TE = x_TE + swiglu(rms_norm(x_TE, layer.mlp_norm_E, self.config.rms_norm_eps), layer)
        return self._logits(x_TE, logits_of)

    def _attend(
        self,
        i: int,
        layer: LayerWeights,
        h_TE: Tensor,
        rotary_T1D: Tensor,
        slots_T: Tensor,
        attention: Attention,
        pool: KvPool,
    ) -> Tensor:
        Q, H, D = self.config.num_q_heads, self.config.num_kv_heads, self.config.head_dim
        qkv_TYD = linear(h_TE, layer.qkv_EY, layer.qkv_bias_Y).view(-1, Q + 2 * H, D)
        qk_TQD = rotate(qkv_TYD[:, : Q + H], rotary_T1D)
        real = len(slots_T)
        pool.write(i, slots_T, qk_TQD[:real, Q:], qkv_TYD[:real, Q + H :])
        return linear(attention(i, qk_TQD[:, :Q], pool), layer.out_XE, layer.out_bias_E)

    def _logits(self, x_TE: Tensor, logits_of: Sequence[int]) -> Tensor:
        if not logits_of:
            return x_TE.new_empty(0, self.config.vocab_size)
        padded = [*logits_of, *[logits_of[0]] * (self.shape.num_rows(len(logits_of)) - len(logits_of))]
        x_RE = rms_norm(x_TE[self._index(padded)], self.weights.norm_E, self.config.rms_norm_eps)
        return linear(x_RE, self.weights.head_VE.t())[: len(logits_of)]

    def _index(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)


def rms_norm(x_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight, in float32 (Zhang and Sennrich 2019)."""
    wide = x_TE.float()
    norm_T1: Tensor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scale_T1: Tensor = norm_T1.square_().mul_(1 / x_TE.shape[-1]).add_(eps).rsqrt_()
    return weight_E * (wide * scale_T1).to(x_TE.dtype)


def swiglu(h_TE: Tensor, layer: LayerWeights) -> Tensor:
    """down(silu(gate(h)) * up(h)) (Shazeer 2020)."""
    gate_TF, up_TF = linear(h_TE, layer.gate_up_EF).chunk(2, dim=-1)
    return linear(F.silu(gate_TF).mul_(up_TF), layer.down_FE)


def rotate(x_TQD: Tensor, rotary_T1D: Tensor) -> Tensor:
    """Rotate pairs by position: neighbours are one complex number (the loader put them side by side)."""
    pairs = torch.view_as_complex(x_TQD.float().view(*x_TQD.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotary_T1D).flatten(-2).to(x_TQD.dtype)


def rotary_table(config: ModelConfig) -> Tensor:
    """cos + i sin for every position and pair: [S, D/2] complex64 (Su et al. 2021)."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequencies = _scale_rotary(1.0 / config.rope_theta**half, config.rope_scaling)
    angles_SD = torch.arange(config.max_context).float()[:, None] * frequencies
    return torch.complex(angles_SD.cos(), angles_SD.sin())


def _scale_rotary(frequencies: Tensor, scaling: dict[str, float | str] | None) -> Tensor:
    """Stretch the rotary frequencies: all alike (`linear`), or only the slow ones, with a blend (`llama3`)."""
    if scaling is None:
        return frequencies
    factor = float(scaling["factor"])
    if scaling["rope_type"] == "linear":
        return frequencies / factor
    old_context = float(scaling["original_max_position_embeddings"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    turns = old_context * frequencies / (2 * math.pi)
    blend = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * blend + frequencies / factor * (1 - blend)


def load_model(
    folder: Path | str,
    *,
    mode: str | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    model_id: str | None = None,
    cache_dir: Path | None = None,
) -> LlamaModel:
    """Load a Hugging Face folder for inference. `mode` is exact or fast (default: exact on CPU, fast elsewhere).

    Exact mode sets one torch thread and raises ExactModeUnavailable where the probe fails.
    """
    folder = Path(folder)
    on_cpu = torch.device(device).type == "cpu"
    mode = mode or ("exact" if on_cpu else "fast")
    dtype = dtype or ("float32" if on_cpu else "bfloat16")
    if mode not in ("exact", "fast"):
        raise UnsupportedModelError(f"mode {mode!r} is unknown; expected exact or fast")
    if dtype not in TORCH_DTYPES:
        raise UnsupportedModelError(f"dtype {dtype!r} is unknown; expected one of {', '.join(TORCH_DTYPES)}")
    if mode == "exact" and not (on_cpu and dtype == "float32"):
        raise ExactModeUnavailable(f"exact mode is for float32 on a CPU, not {dtype} on {device}; use fast mode")
    config = read_model_config(folder, model_id)
    weights = load_weights(folder, config, device, TORCH_DTYPES[dtype], cache_dir)
    shape = _probe(config, weights) if mode == "exact" else fast_shape()
    return LlamaModel(config, weights, shape, weights_digest(folder))


def _probe(config: ModelConfig, weights: Weights) -> KernelShape:
    first = weights.layers[0]
    linears = [first.qkv_EY, first.out_XE, first.gate_up_EF, first.down_FE, weights.head_VE.t()]
    return exact_shape(linears, config.num_q_heads, config.num_kv_heads, config.head_dim)
