"""A Hugging Face folder -> the decoder's weights, in memory that workers of one host share.

The decoder wants its linears fused (q, k, v; gate, up) and laid out [inputs, outputs], which the folder does not have.
So the first worker writes a *packed* file once, and every worker maps that: one copy in memory, no start-up work. It
lies in the model folder, or in `cache_dir` when given. On CUDA each tensor is packed on its way to the device.

q and k rows are permuted so that the two halves of a rotary pair lie beside each other: rotation is then one complex
product. Scores do not change, since q and k are permuted alike.

Suffixes: V = vocabulary, E = hidden, X = query heads * head dim, Y = (query + 2 KV heads) * head dim, F = intermediate
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.errors import ModelFolderError, WeightShapeError
from engine.model_folder import weight_files
from engine.safetensor_file import TensorSpec, map_tensors, read_header, write_tensors
from engine.types import ModelConfig

_SAMPLES_PER_FILE = 64
_SAMPLE_BYTES = 4_096
_PACK_VERSION = 1


@dataclass(frozen=True, slots=True)
class LayerWeights:
    attn_norm_E: Tensor
    qkv_EY: Tensor
    qkv_bias_Y: Tensor | None
    out_XE: Tensor
    out_bias_E: Tensor | None
    mlp_norm_E: Tensor
    gate_up_EF: Tensor  # gate, then up: [E, 2F]
    down_FE: Tensor


@dataclass(frozen=True, slots=True)
class Weights:
    embed_VE: Tensor
    layers: tuple[LayerWeights, ...]
    norm_E: Tensor
    head_VE: Tensor  # the embedding itself when tied


def load_weights(
    folder: Path,
    config: ModelConfig,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    cache_dir: Path | None = None,
) -> Weights:
    """Weights for the decoder: views of one shared map on a CPU, tensors of `dtype` on another device.

    Raises MissingFileError and WeightShapeError.
    """
    packed = {spec.name: value for spec, value in _packed(folder, config, dtype, device, cache_dir)}
    layers = tuple(
        LayerWeights(
            packed[f"{i}.attn_norm"],
            packed[f"{i}.qkv"],
            packed.get(f"{i}.qkv_bias"),
            packed[f"{i}.out"],
            packed.get(f"{i}.out_bias"),
            packed[f"{i}.mlp_norm"],
            packed[f"{i}.gate_up"],
            packed[f"{i}.down"],
        )
        for i in range(config.num_layers)
    )
    return Weights(packed["embed"], layers, packed["norm"], packed.get("head", packed["embed"]))


def weights_digest(folder: Path) -> str:
    """Names the weights: a hash of every file's header and size and of 64 evenly spaced pages of its data.

    Cheap (256 KB read per file), so two workers can compare it at every start; not proof against a forger.
    """
    digest = hashlib.sha256()
    for path in weight_files(folder):
        size = path.stat().st_size
        header, data_start, raw = read_header(path)
        digest.update(raw)
        digest.update(f"{path.name} {size} {len(header)}".encode())
        step = max((size - data_start) // _SAMPLES_PER_FILE, _SAMPLE_BYTES)
        with path.open("rb") as file:
            for offset in range(data_start, size, step):
                file.seek(offset)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:32]


def packed_path(folder: Path, dtype: torch.dtype, cache_dir: Path | None = None) -> Path:
    """Where the packed weights lie, or will."""
    name = f"phaseline-v{_PACK_VERSION}-{str(dtype).removeprefix('torch.')}-{weights_digest(folder)[:16]}.safetensors"
    return (cache_dir or folder) / name


def _packed(
    folder: Path, config: ModelConfig, dtype: torch.dtype, device: str, cache_dir: Path | None
) -> Iterator[tuple[TensorSpec, Tensor]]:
    if torch.device(device).type != "cpu":
        source = _source_tensors(folder)
        for spec, make in _recipes(config, source, dtype):
            yield spec, make().to(device, dtype)
        return
    path = packed_path(folder, dtype, cache_dir)
    if not path.is_file():
        _write_packed_once(path, folder, config, dtype)
    mapped = map_tensors(path)
    for spec, _ in _recipes(config, None, dtype):
        tensor = mapped.get(spec.name)
        if tensor is None or tuple(tensor.shape) != spec.shape:
            raise WeightShapeError(f"{path}: {spec.name} is not {spec.shape}; delete this file to have it made again")
        yield spec, tensor


def _write_packed_once(path: Path, folder: Path, config: ModelConfig, dtype: torch.dtype) -> None:
    """Write the packed file; workers that start together wait for the first of them."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise ModelFolderError(
            f"{path.parent}: cannot write packed weights here ({error.strerror}); give a cache folder"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_file():
            recipes = list(_recipes(config, _source_tensors(folder), dtype))
            write_tensors(path, [spec for spec, _ in recipes], (make() for _, make in recipes))
    finally:
        path.with_suffix(".lock").unlink(missing_ok=True)
        os.close(lock)


def _source_tensors(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in weight_files(folder) for name, tensor in map_tensors(path).items()}


class _Source:
    """Tensors of the folder by their Hugging Face name, each checked against the shape that config.json implies."""

    def __init__(self, tensors: dict[str, Tensor] | None) -> None:
        self._tensors = tensors

    def __call__(self, name: str, *shape: int) -> Tensor:
        assert self._tensors is not None
        tensor = self._tensors.get(name)
        if tensor is None:
            raise WeightShapeError(f"weights: {name} is missing; config.json implies shape {shape}")
        if tuple(tensor.shape) != shape:
            raise WeightShapeError(f"weights: {name} has shape {tuple(tensor.shape)}; config.json implies {shape}")
        return tensor


Recipe = tuple[TensorSpec, Callable[[], Tensor]]


def _recipes(config: ModelConfig, tensors: dict[str, Tensor] | None, dtype: torch.dtype) -> Iterator[Recipe]:
    """Every packed tensor: its name and shape, and how it is made from the folder's tensors."""
    source = _Source(tensors)
    V, E = config.vocab_size, config.hidden_size

    def plain(key: str, name: str, *shape: int) -> Recipe:
        return TensorSpec(key, shape, dtype), lambda: source(name, *shape)

    yield plain("embed", "model.embed_tokens.weight", V, E)
    for i in range(config.num_layers):
        yield from _layer_recipes(config, i, source, dtype)
    yield plain("norm", "model.norm.weight", E)
    if not config.tie_word_embeddings:
        yield plain("head", "lm_head.weight", V, E)


def _layer_recipes(config: ModelConfig, i: int, source: _Source, dtype: torch.dtype) -> Iterator[Recipe]:
    E, F, D = config.hidden_size, config.intermediate_size, config.head_dim
    X, K = config.num_q_heads * D, config.num_kv_heads * D
    at = f"model.layers.{i}"

    def qkv(kind: str, *inputs: int) -> Tensor:
        q, k, v = (
            source(f"{at}.self_attn.{n}_proj.{kind}", rows, *inputs) for n, rows in (("q", X), ("k", K), ("v", K))
        )
        return torch.cat([pair_rotary(q, D), pair_rotary(k, D), v])

    def gate_up() -> Tensor:
        return torch.cat([source(f"{at}.mlp.{n}_proj.weight", F, E) for n in ("gate", "up")])

    yield TensorSpec(f"{i}.attn_norm", (E,), dtype), lambda: source(f"{at}.input_layernorm.weight", E)
    yield TensorSpec(f"{i}.qkv", (E, X + 2 * K), dtype), lambda: qkv("weight", E).t()
    yield TensorSpec(f"{i}.out", (X, E), dtype), lambda: source(f"{at}.self_attn.o_proj.weight", E, X).t()
    yield TensorSpec(f"{i}.mlp_norm", (E,), dtype), lambda: source(f"{at}.post_attention_layernorm.weight", E)
    yield TensorSpec(f"{i}.gate_up", (E, 2 * F), dtype), lambda: gate_up().t()
    yield TensorSpec(f"{i}.down", (F, E), dtype), lambda: source(f"{at}.mlp.down_proj.weight", E, F).t()
    if config.attention_bias:
        yield TensorSpec(f"{i}.qkv_bias", (X + 2 * K,), dtype), lambda: qkv("bias")
        yield TensorSpec(f"{i}.out_bias", (E,), dtype), lambda: source(f"{at}.self_attn.o_proj.bias", E)


def pair_rotary(rows: Tensor, head_dim: int) -> Tensor:
    """Reorder output rows of each head from (first halves, second halves) to pairs: 0, D/2, 1, D/2 + 1, ..."""
    halves = rows.view(-1, 2, head_dim // 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)
