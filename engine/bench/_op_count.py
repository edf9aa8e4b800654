"""What a forward does, counted where torch carries it out: each operator's shapes, masks and memory, one by one.

Nothing here knows a formula of `engine.work`: that is what this count is for. It sees a real forward of the real model:

- FLOPs of a linear: 2 x rows x inputs x outputs, from the shapes of the call.
- FLOPs of attention: 4 x head size for each query and key that the call's mask lets meet, from the mask's values.
- Bytes read of weights: each weight that an operator reads, once a forward; of the embedding the rows that it gathers.
- Bytes read of KV: the positions that some query of the sequence sees, however many calls see them; bytes written:
  what is copied into the pool.
- Beside them, since other counters bill them: bytes of activations that linears, attention and SwiGLU read and write,
  and one FLOP per value for all that is neither linear nor attention.

Run it over forwards without padding rows (`Unpadded`): what is only padding is nobody's work. All that is counted is
known from shapes and masks; so `carry_out=False` leaves out the products themselves, and a long prompt costs little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from engine.exact import KernelShape
from engine.loader import Weights

_aten: Final = torch.ops.aten


class Unpadded(KernelShape):
    """Rows as they are wanted. Not for exact mode."""

    def num_rows(self, rows: int) -> int:
        return rows


@dataclass(slots=True)
class OpWork:
    """What one forward did."""

    flops: float = 0.0
    weight_bytes: float = 0.0
    embedding_bytes: float = 0.0
    kv_read_bytes: float = 0.0
    kv_written_bytes: float = 0.0
    activation_bytes: float = 0.0
    other_flops: float = 0.0

    @property
    def bytes(self) -> float:
        """Weights, KV and embedding rows: what has to come from the device's memory whatever the kernels are."""
        return self.weight_bytes + self.embedding_bytes + self.kv_read_bytes + self.kv_written_bytes

    @property
    def bytes_with_activations(self) -> float:
        return self.bytes + self.activation_bytes

    def add(self, other: OpWork) -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


class OpCount(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the forward that runs inside it; `take` ends one and gives what it did."""

    def __init__(self, weights: Weights, pool_NLCPHD: Tensor, *, carry_out: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._instead = {} if carry_out else _SKIPPED
        self._weight_memory = {_memory(each) for each in tensors_of(weights)}
        self._pool_memory = _memory(pool_NLCPHD)
        self._work = OpWork()
        self._read: set[tuple[int, int]] = set()  # weights that this forward has read
        self._masks: dict[int, tuple[int, Tensor]] = {}  # by address: they are made once a forward, for all layers
        self._seen_BS: Tensor | None = None  # KV positions of the gathered sequences that some query has seen
        self._kv_row_bytes = 0
        self._counts: Mapping[Any, Callable[..., None]] = {
            _aten.mm.default: self._linear,
            _aten.addmm.default: lambda bias, x, weight, *_, **__: self._linear(x, weight),
            torch.ops.mkldnn._linear_pointwise.default: lambda x, weight, *_, **__: self._linear(x, weight.t()),
            _aten._scaled_dot_product_flash_attention_for_cpu.default: self._attention,
            _aten.embedding.default: self._embedding,
            _aten.index_select.out: self._gather,
            _aten.index_copy_.default: self._write,
            _aten.silu.default: lambda x: self._activation(2 * x.numel() * x.itemsize),  # gate and up, fused
        }

    def take(self) -> OpWork:
        self._end_gather()
        work, self._work = self._work, OpWork()
        self._read.clear()
        self._masks.clear()
        return work

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        count = self._counts.get(func)
        if count is not None:
            count(*args, **kwargs)
        if func is not _aten.embedding.default:
            self._read_weights(args)
        out = self._instead.get(func, func)(*args, **kwargs)
        if isinstance(out, Tensor) and func.overloadpacket in _BY_VALUE:
            self._work.other_flops += out.numel()
        return out

    # --- operators --------------------------------------------------------------------------------------------------

    def _linear(self, x_MK: Tensor, weight_KN: Tensor, *_: object, **__: object) -> None:
        rows, (inputs, outputs) = x_MK.numel() // x_MK.shape[-1], weight_KN.shape
        self._work.flops += 2.0 * rows * inputs * outputs
        self._activation(rows * (inputs + outputs) * x_MK.itemsize)

    def _attention(self, q_BQRD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, *_: object, attn_mask: Tensor) -> None:
        met, visible_BS = self._mask(attn_mask)
        self._work.flops += 4.0 * q_BQRD.shape[3] * met * q_BQRD.shape[1]
        self._activation(2 * q_BQRD.numel() * q_BQRD.itemsize)
        self._kv_row_bytes = k_BHSD.shape[1] * k_BHSD.shape[3] * (k_BHSD.itemsize + v_BHSD.itemsize)
        self._see(visible_BS)

    def _mask(self, mask_B1RS: Tensor) -> tuple[int, Tensor]:
        """Queries and keys that meet, of one head, and the positions that any query sees."""
        at = mask_B1RS.data_ptr()
        if at not in self._masks:
            visible_BRS = torch.isfinite(mask_B1RS[:, 0])
            self._masks[at] = int(visible_BRS.sum()), visible_BRS.any(dim=1)
        return self._masks[at]

    def _see(self, visible_BS: Tensor) -> None:
        """A later call of the same sequences may see further than the one before."""
        if self._seen_BS is not None:
            width = self._seen_BS.shape[1]
            visible_BS = visible_BS.clone()
            visible_BS[:, :width] |= self._seen_BS[:, : visible_BS.shape[1]]
        self._seen_BS = visible_BS

    def _gather(self, source: Tensor, *_: object, **__: object) -> None:
        if _memory(source) == self._pool_memory:
            self._end_gather()

    def _end_gather(self) -> None:
        if self._seen_BS is not None:
            self._work.kv_read_bytes += int(self._seen_BS.sum()) * self._kv_row_bytes
            self._seen_BS = None

    def _write(self, into: Tensor, dim: int, index: Tensor, source: Tensor) -> None:
        if _memory(into) == self._pool_memory:
            self._work.kv_written_bytes += source.numel() * source.itemsize

    def _embedding(self, table_VE: Tensor, index_T: Tensor, *_: object) -> None:
        self._work.embedding_bytes += index_T.numel() * table_VE.shape[1] * table_VE.itemsize

    def _activation(self, num_bytes: float) -> None:
        self._work.activation_bytes += num_bytes

    def _read_weights(self, args: Iterable[Any]) -> None:
        for each in args:
            if isinstance(each, Tensor) and _memory(each) in self._weight_memory:
                name = (each.data_ptr(), each.numel())
                if name not in self._read:
                    self._read.add(name)
                    self._work.weight_bytes += each.numel() * each.itemsize


#: What a forward computes value by value: norms, rotation, residuals, SwiGLU's gate.
_BY_VALUE: Final = frozenset(
    getattr(_aten, name) for name in ("add", "mul", "mul_", "add_", "rsqrt", "square_", "silu", "linalg_vector_norm")
)


#: What stands for an operator that is not carried out: a result of its shape.
_SKIPPED: Final[Mapping[Any, Callable[..., Any]]] = {
    _aten.mm.default: lambda x, weight: x.new_zeros(x.shape[0], weight.shape[1]),
    _aten.addmm.default: lambda bias, x, weight, **_: x.new_zeros(x.shape[0], weight.shape[1]),
    torch.ops.mkldnn._linear_pointwise.default: lambda x, weight, *_: x.new_zeros(*x.shape[:-1], weight.shape[0]),
    _aten._scaled_dot_product_flash_attention_for_cpu.default: lambda q, *_, **__: (torch.zeros_like(q), None),
    _aten.index_select.out: lambda *_, out: out,
}


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def tensors_of(weights: Weights) -> list[Tensor]:
    """All of a model's weights."""
    layers = [getattr(layer, each.name) for layer in weights.layers for each in fields(layer)]
    return [each for each in (weights.embed_VE, weights.norm_E, weights.head_VE, *layers) if each is not None]
