"""One column of points as bytes and back, every bit as it was: what a number costs on the disk is decided here.

    constant | whole numbers (of 1, or of 2**-24): differences, in as few bytes as the largest needs | doubles
    the bytes are laid out plane by plane (all lowest bytes first) and compressed by zstd

NaN is "not there". A column in which some rows have none carries a bitmap and only the others' values.
Measured seconds and counts are multiples of a quantum (`control.spreading`), so most columns are whole numbers.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_HEAD: Final = struct.Struct("<BBI")  # how; bytes of a value; number of values
_CONSTANT, _WHOLE, _FINE, _DOUBLE = range(4)
_MASKED: Final = 16  # added to `how`: a bitmap of the rows that have a value comes first
_SCALES: Final = {_WHOLE: 1.0, _FINE: 2.0**24}
_MOST: Final = 2.0**53  # beyond it, doubles are no longer whole numbers one by one
_SMALL: Final = 64  # bytes: compressing less costs more than it saves
_PLAIN: Final = 32  # added to `how`: the planes are not compressed


def encode(values: Floats) -> bytes:
    """Bytes of a column; NaN marks rows without a value."""
    there = ~np.isnan(values)
    if there.all():
        return _encode_full(values, 0, b"")
    bitmap = _pack(np.packbits(there).tobytes())
    return _encode_full(values[there], _MASKED, _HEAD.pack(0, 0, len(values)) + struct.pack("<I", len(bitmap)) + bitmap)


def encode_ints(values: Ints) -> bytes:
    """Bytes of a key column, such as times. Values are below 2**53."""
    return encode(values.astype(np.float64))


def decode(data: bytes) -> Floats:
    """The column that `encode` was given."""
    how, width, count = _HEAD.unpack_from(data)
    if not how & _MASKED:
        return _decode_full(how, width, count, memoryview(data)[_HEAD.size :])
    _, _, rows = _HEAD.unpack_from(data, _HEAD.size)
    at = 2 * _HEAD.size
    (length,) = struct.unpack_from("<I", data, at)
    at += 4
    packed = np.frombuffer(_unpack(memoryview(data)[at : at + length], (rows + 7) // 8), np.uint8)
    found = np.full(rows, np.nan)
    found[np.unpackbits(packed, count=rows).astype(bool)] = _decode_full(
        how & ~_MASKED, width, count, memoryview(data)[at + length :]
    )
    return found


def num_values(data: bytes) -> int:
    """Rows of the column, without reading them."""
    how, _, count = _HEAD.unpack_from(data)
    rows: int = _HEAD.unpack_from(data, _HEAD.size)[2] if how & _MASKED else count
    return rows


def decode_ints(data: bytes) -> Ints:
    return decode(data).astype(np.int64)


def _encode_full(values: Floats, flags: int, head: bytes) -> bytes:
    count = len(values)
    if count == 0 or (values == values[0]).all():
        first = struct.pack("<d", values[0]) if count else b""
        return _HEAD.pack(_CONSTANT | flags, 8, count) + head + first
    how, width, planes = _as_planes(values)
    if len(planes) < _SMALL:
        return _HEAD.pack(how | flags | _PLAIN, width, count) + head + planes
    return _HEAD.pack(how | flags, width, count) + head + _pack(planes)


def _decode_full(how: int, width: int, count: int, body: memoryview) -> Floats:
    kind = how & ~_PLAIN
    if kind == _CONSTANT:
        return np.full(count, struct.unpack_from("<d", body)[0]) if count else np.empty(0)
    size = width * count
    planes = body if how & _PLAIN else _unpack(body, size)
    words = np.zeros((count, 8), np.uint8)
    words[:, :width] = np.frombuffer(planes, np.uint8, size).reshape(width, count).T
    if kind == _DOUBLE:
        return words.view(np.float64).reshape(count)
    folded = words.view(np.uint64).reshape(count)
    steps = (folded >> np.uint64(1)).astype(np.int64) ^ -(folded & np.uint64(1)).astype(np.int64)
    return np.cumsum(steps) / _SCALES[kind]


def _as_planes(values: Floats) -> tuple[int, int, bytes]:
    """How, bytes of a value, and the bytes themselves, plane by plane."""
    for kind, scale in _SCALES.items():
        scaled = values * scale
        if np.abs(scaled).max() < _MOST and (np.rint(scaled) == scaled).all():
            whole = scaled.astype(np.int64)
            steps = np.diff(whole, prepend=0)
            folded = ((steps << 1) ^ (steps >> 63)).view(np.uint64)
            width = max(1, (int(folded.max()).bit_length() + 7) // 8)
            return kind, width, _planes(folded, width)
    return _DOUBLE, 8, _planes(np.ascontiguousarray(values), 8)


def _planes(words: npt.NDArray[np.generic], width: int) -> bytes:
    return words.view(np.uint8).reshape(-1, 8)[:, :width].T.tobytes()


def _pack(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)  # type: ignore[no-any-return]


def _unpack(data: memoryview, size: int) -> bytes:
    return pa.decompress(data, size, codec="zstd", asbytes=True)  # type: ignore[no-any-return]
