"""Read and write .safetensors files as zero-copy views of one private memory map.

Several workers on one host map the same file, so its pages are in memory once. The data starts 64-byte aligned, which
the format allows (its header may be padded with spaces; gaps between tensors are refused by readers). What the tensors
mean is not decided here.
Format: https://huggingface.co/docs/safetensors (8-byte header length, JSON header, data).
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.errors import WeightShapeError

DTYPES: dict[str, torch.dtype] = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGN_BYTES = 64


class TensorSpec(NamedTuple):
    """One tensor to write: its values are asked for only when its turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def read_header(path: Path) -> tuple[dict[str, Any], int, bytes]:
    """Entries by tensor name, offset of the data in the file, and the raw header bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= size - 8:
            raise WeightShapeError(f"{path}: header length {length} is outside 2..{size - 8}; not a safetensors file")
        raw = file.read(length)
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError):
        raise WeightShapeError(f"{path}: header is not valid JSON; not a safetensors file") from None
    header.pop("__metadata__", None)
    return header, 8 + length, raw


def map_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of the file, as views of a copy-on-write map of it. Nothing is read until it is touched."""
    header, data_start, _ = read_header(path)
    size = path.stat().st_size
    pages = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    tensors = {}
    for name, entry in header.items():
        begin, end = (data_start + offset for offset in entry["data_offsets"])
        if entry["dtype"] not in DTYPES:
            raise WeightShapeError(f"{path}: {name} has dtype {entry['dtype']}; expected one of {', '.join(DTYPES)}")
        dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
        wanted = TensorSpec(name, shape, dtype).num_bytes
        if end > size or end - begin != wanted:
            held = min(end, size) - begin
            raise WeightShapeError(f"{path}: {name} needs {wanted} bytes, has {held}; is the file cut short?")
        raw = pages[begin:end]
        if begin % dtype.itemsize:
            raw = raw.clone()
        tensors[name] = raw.view(dtype).view(shape)
    return tensors


def write_tensors(path: Path, specs: list[TensorSpec], values: Iterable[Tensor]) -> None:
    """Write `values` (one per spec, in order) to `path`, whole or not at all: a temporary file beside it is renamed."""
    header = _pack_header(specs)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(header)
            for spec, value in zip(specs, values, strict=True):
                tensor = value.detach().to("cpu", spec.dtype).contiguous()
                if tuple(tensor.shape) != spec.shape:
                    raise WeightShapeError(f"{spec.name}: shape {tuple(tensor.shape)}, expected {spec.shape}")
                file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _pack_header(specs: list[TensorSpec]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for spec in specs:
        end = offset + spec.num_bytes
        entries[spec.name] = {"dtype": _DTYPE_NAMES[spec.dtype], "shape": spec.shape, "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(entries, separators=(",", ":")).encode()
    raw += b" " * (-(8 + len(raw)) % _ALIGN_BYTES)
    return len(raw).to_bytes(8, "little") + raw
