"""Points on their way through the database: a tick's rows, a shelf's minute, a column's chunk. SQL and bytes, no rules.

Decided here: kinds (what rows have the same columns), and how rows become bytes. Not decided here: when something goes
from one to the next (`control.history.upkeep`), how rows become one (`control.history.frames`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
from sqlalchemy import Connection, delete, select

from control.history import schema
from control.history.codec import Floats, Ints, decode, decode_ints, encode, encode_ints, num_values
from control.history.frames import EMPTY, Frame, Mask, fill, thin
from control.types.workers import Phase

Kind = str
STATE: Final[Kind] = "state"
TRAFFIC: Final[Kind] = "traffic"
Frames = Mapping[Kind, Frame]


def phase_kind(phase: str) -> Kind:
    return f"phase {phase}"


def latency_kind(name: str) -> Kind:
    return f"latency {name}"


PHASE_KINDS: Final = tuple(phase_kind(phase) for phase in Phase)
_KEYS: Final = ("#line", "#t", "#bucket")  # the columns that a row is known by, beside those of its values


# --- ticks -----------------------------------------------------------------------------------------------------------


class _Plain(msgspec.Struct, array_like=True):
    """A frame as it is, nothing left out: written each second, read once."""

    line_ids: bytes
    t: bytes
    bucket: bytes
    columns: dict[str, bytes]


_plain_decoder = msgspec.msgpack.Decoder(tuple[int, dict[str, _Plain]])


def pack_tick(frames: Frames) -> bytes:
    plain = {
        kind: _Plain(
            frame.line_ids.tobytes(),
            frame.t.tobytes(),
            frame.bucket.tobytes(),
            {name: values.tobytes() for name, values in frame.columns.items()},
        )
        for kind, frame in frames.items()
    }
    body = msgspec.msgpack.encode((1, plain))
    packed: bytes = pa.compress(body, codec="zstd", asbytes=True)
    return len(body).to_bytes(8, "little") + packed


def unpack_tick(data: bytes) -> dict[Kind, Frame]:
    size = int.from_bytes(data[:8], "little")
    _, plain = _plain_decoder.decode(pa.decompress(memoryview(data)[8:], size, codec="zstd", asbytes=True))
    return {
        kind: Frame(
            np.frombuffer(each.line_ids, np.int64),
            np.frombuffer(each.t, np.int64),
            np.frombuffer(each.bucket, np.int64),
            {name: np.frombuffer(values, np.float64) for name, values in each.columns.items()},
        )
        for kind, each in plain.items()
    }


# --- parts -----------------------------------------------------------------------------------------------------------


def put_parts(connection: Connection, shelf_id: int, tick_id: int, parts: Iterable[tuple[Kind, int, Frame]]) -> None:
    """Rows of one shelf: (kind, block, frame) each."""
    rows = [
        {"shelf_id": shelf_id, "t": block, "kind": kind, "tick_id": tick_id, "data": _pack_part(frame)}
        for kind, block, frame in parts
    ]
    if rows:
        connection.execute(schema.parts.insert(), rows)


def _pack_part(frame: Frame) -> bytes:
    return msgspec.msgpack.encode(_encoded(thin(frame)))


def _encoded(frame: Frame) -> dict[str, bytes]:
    """Columns by name, the keys among them. A column that is nowhere there is left out."""
    keys = zip(_KEYS, (frame.line_ids, frame.t, frame.bucket), strict=True)
    found = {name: encode_ints(values) for name, values in keys}
    return found | {name: encode(values) for name, values in frame.columns.items() if not np.isnan(values).all()}


def _decoded(columns: Mapping[str, bytes], names: Iterable[str] | None = None) -> Frame:
    line_ids, t, bucket = (decode_ints(columns[name]) for name in _KEYS)
    wanted = columns.keys() - set(_KEYS) if names is None else [name for name in names if name in columns]
    return Frame(line_ids, t, bucket, {name: decode(columns[name]) for name in wanted})


def unpack_part(data: bytes, names: Iterable[str] | None = None) -> Frame:
    return _decoded(msgspec.msgpack.decode(data, type=dict[str, bytes]), names)


def read_parts(connection: Connection, shelf_id: int, block: int) -> dict[Kind, list[Frame]]:
    """All parts of one block of one shelf, by kind, with the extremes of their gauges."""
    c = schema.parts.c
    rows = connection.execute(select(c.kind, c.data).where(c.shelf_id == shelf_id, c.t == block))
    found: dict[Kind, list[Frame]] = {}
    for kind, data in rows:
        found.setdefault(kind, []).append(fill(unpack_part(data)))
    return found


def drop_parts(connection: Connection, shelf_id: int, block: int) -> None:
    c = schema.parts.c
    connection.execute(delete(schema.parts).where(c.shelf_id == shelf_id, c.t == block))


# --- chunks ----------------------------------------------------------------------------------------------------------


def chunk_start(step_s: int, t: int) -> int:
    """Start of the chunk of this step that holds this time."""
    return t - t % schema.CHUNK_S[step_s]


def read_chunk(connection: Connection, shelf_id: int, kind: Kind, step_s: int, t: int) -> Frame:
    """All rows of one chunk; `t` is its start."""
    c = schema.chunks.c
    where = (c.shelf_id == shelf_id, c.kind == kind, c.step_s == step_s, c.t == t)
    columns: dict[str, bytes] = dict(connection.execute(select(c.name, c.data).where(*where)).tuples().all())
    if not columns:
        return EMPTY
    frame = _decoded(columns)
    return fill(frame) if step_s == 1 else frame


def put_chunk(connection: Connection, shelf_id: int, kind: Kind, step_s: int, t: int, frame: Frame) -> None:
    """Set all rows of one chunk; the frame's rows are merged."""
    c = schema.chunks.c
    where = (c.shelf_id == shelf_id, c.kind == kind, c.step_s == step_s, c.t == t)
    connection.execute(delete(schema.chunks).where(*where))
    if rows := chunk_rows(shelf_id, kind, step_s, t, frame):
        connection.execute(schema.chunks.insert(), rows)


def chunk_rows(shelf_id: int, kind: Kind, step_s: int, t: int, frame: Frame) -> list[dict[str, Any]]:
    """A chunk as rows of its table."""
    if not len(frame):
        return []
    columns = _encoded(thin(frame) if step_s == 1 else frame)
    key = {"shelf_id": shelf_id, "kind": kind, "step_s": step_s, "t": t}
    return [{**key, "name": name, "data": data} for name, data in columns.items()]


class StoredColumns:
    """Rows of chunks of one kind and step; each column is read when it is asked for, and never one that is not."""

    def __init__(
        self,
        connection: Connection,
        *,
        shelf_ids: Sequence[int],
        kind: Kind,
        step_s: int,
        times: Sequence[int],
        keep: Callable[[Ints, Ints], Mask],
    ) -> None:
        """Of these shelves the chunks that begin at these times; of their rows those whose line and time to `keep`."""
        c = schema.chunks.c
        when = c.t.in_(times) if len(times) <= _FEW_TIMES else c.t.between(min(times), max(times))
        self._connection = connection
        self._where = (c.shelf_id.in_(shelf_ids), c.kind == kind, c.step_s == step_s, when)
        lines, ts, buckets = (self._read(name) for name in _KEYS)
        self._sizes = {place: num_values(data) for place, data in ts.items()}
        line_ids, t, bucket = (self._joined(column).astype(np.int64) for column in (lines, ts, buckets))
        self._kept = keep(line_ids, t)
        self.line_ids, self.t, self.bucket = line_ids[self._kept], t[self._kept], bucket[self._kept]

    def __len__(self) -> int:
        return len(self.t)

    def column(self, name: str) -> Floats:
        return self._joined(self._read(name))[self._kept] if len(self) else np.empty(0)

    def _joined(self, column: Mapping[tuple[int, int], bytes]) -> Floats:
        """Chunk after chunk; one that lacks the column has NaN in all its rows."""
        found = [
            decode(column[place]) if place in column else np.full(size, np.nan) for place, size in self._sizes.items()
        ]
        return np.concatenate(found) if found else np.empty(0)

    def _read(self, name: str) -> dict[tuple[int, int], bytes]:
        c = schema.chunks.c
        rows = self._connection.execute(select(c.shelf_id, c.t, c.data).where(*self._where, c.name == name))
        return {(shelf_id, t): data for shelf_id, t, data in rows}


_FEW_TIMES: Final = 60
