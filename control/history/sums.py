"""The stored sums that a query asks for, by group and bucket: each column is read and added up when a formula asks.

Decided here: which of the stored steps a bucket is made of. Coarse points serve where they are up to date; a block that
has rows in `ticks` or `parts` (the newest ones, and what came late) is read second by second, so an answer never
depends on what has been rolled up already. Not decided here: what a bucket's value is (`control.metrics`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from sqlalchemy import Connection, select

from control.buckets import Histograms
from control.history import schema
from control.history.chunks import Frames, Kind, StoredColumns, chunk_start, unpack_part
from control.history.codec import Floats, Ints
from control.history.frames import COUNT, Frame, Groups, Mask, aligned, band, concat, fill, quotient, uncovered
from control.history.tail import Tail
from control.points import GAUGES, ONCE_A_SECOND, PHASE_BANDS

BLOCK_S: Final = schema.BLOCK_S


@dataclass(frozen=True, slots=True)
class Lines:
    """The lines of a query: sorted ids, and of each its shelf, the shelf's newest folded tick, and its group."""

    ids: Ints
    shelves: Ints
    folded: Ints
    groups: Ints
    names: tuple[str, ...]  # of the groups
    simulated: Mask

    @property
    def shelf_ids(self) -> list[int]:
        return [int(each) for each in np.unique(self.shelves)]

    def place(self, line_ids: Ints) -> Ints:
        """Where these lines are in `ids`; -1 for others."""
        if not len(self.ids):
            return np.full(len(line_ids), -1)
        at = np.minimum(np.searchsorted(self.ids, line_ids), len(self.ids) - 1)
        return np.where(self.ids[at] == line_ids, at, -1)


@dataclass(frozen=True, slots=True)
class Range:
    """[since, until) in buckets of `step_s`, made of points of `base_s`, where seconds before `raw_since` are gone."""

    since: int
    until: int
    step_s: int
    base_s: int
    raw_since: int

    @property
    def begin(self) -> int:
        """Of the first bucket."""
        return self.since - self.since % self.step_s

    @property
    def num_buckets(self) -> int:
        return -((self.begin - self.until) // self.step_s)


class _Columns(Protocol):
    """Rows whose columns are there when they are asked for: a Frame, or StoredColumns."""

    @property
    def line_ids(self) -> Ints: ...
    @property
    def t(self) -> Ints: ...
    @property
    def bucket(self) -> Ints: ...
    def __len__(self) -> int: ...

    def column(self, name: str) -> Floats: ...


class Source:
    """Where the points of some lines lie in a range: one look at what is folded, and at the newest ticks."""

    def __init__(self, connection: Connection, tail: Tail, lines: Lines, span: Range) -> None:
        self.connection, self.lines, self.span = connection, lines, span
        self._ticks = tail.read(connection, int(lines.folded.min())) if len(lines.ids) else []
        self._fine = self._fine_blocks()

    @property
    def num_cells(self) -> int:
        return len(self.lines.names) * self.span.num_buckets

    def cells(self, line_ids: Ints, t: Ints) -> tuple[Ints, bool]:
        """The cell of each row; whether one of them is simulated."""
        at, span = self.lines.place(line_ids), self.span
        found = self.lines.groups[at] * span.num_buckets + (t - span.begin) // span.step_s
        return found, bool(self.lines.simulated[at].any())

    def _fine_blocks(self) -> set[tuple[int, int]]:
        """(shelf, block) that are read second by second: all that is newer than what is rolled up, and the last one,
        which would otherwise reach beyond the range."""
        span, c = self.span, schema.parts.c
        if span.base_s == 1:
            return set()
        end = span.until - span.until % BLOCK_S
        since = span.since - span.since % BLOCK_S
        rows = self.connection.execute(
            select(c.shelf_id, c.t)
            .where(c.shelf_id.in_(self.lines.shelf_ids), c.t >= since, c.t < span.until)
            .distinct()
        )
        found = {(shelf_id, t) for shelf_id, t in rows}
        for frames in self._new_frames():
            for frame in frames.values():
                shelves = self.lines.shelves[self.lines.place(frame.line_ids)]
                keys = np.unique(np.stack([shelves, frame.t - frame.t % BLOCK_S]), axis=1)
                found |= {(int(shelf), int(t)) for shelf, t in keys.T}
        if span.until % span.step_s:
            found |= {(shelf_id, end) for shelf_id in self.lines.shelf_ids}
        return {(shelf_id, t) for shelf_id, t in found if t >= span.raw_since}

    def _new_frames(self, kind: Kind | None = None) -> Iterator[Frames]:
        """Rows of our lines in the range that are not folded yet."""
        for tick_id, frames in self._ticks:
            found: dict[Kind, Frame] = {}
            for each, frame in frames.items():
                if kind is None or each == kind:
                    at = self.lines.place(frame.line_ids)
                    mine = (at >= 0) & (self.lines.folded[at] < tick_id) & self._inside(frame.t)
                    if mine.any():
                        found[each] = frame.where(mine)
            if found:
                yield found

    def _inside(self, t: Ints) -> Mask:
        return (t >= self.span.since) & (t < self.span.until)

    def _is_mine(self, line_ids: Ints, t: Ints) -> Mask:
        return (self.lines.place(line_ids) >= 0) & self._inside(t)

    def _is_fine(self, line_ids: Ints, t: Ints) -> Mask:
        """Rows that lie in a block which is read second by second."""
        return self._among(self._fine, line_ids, t, BLOCK_S)

    def _among(self, blocks: set[tuple[int, int]], line_ids: Ints, t: Ints, width_s: int) -> Mask:
        if not blocks:
            return np.zeros(len(t), np.bool_)
        shelves = self.lines.shelves[self.lines.place(line_ids)]
        listed = np.array([shelf * _FAR + t for shelf, t in blocks], np.int64)
        return np.isin(shelves * _FAR + (t - t % width_s), listed)

    def coarse(self, kind: Kind) -> list[_Columns]:
        """Rows of the base step, and of the step below in buckets of which a block is read second by second."""
        span = self.span
        if span.base_s == 1:
            return []
        if span.base_s <= BLOCK_S:
            return [self._stored(kind, span.base_s, self._chunks(span.base_s), self._is_coarse)]
        stale = {(shelf, t - t % span.base_s) for shelf, t in self._fine}
        whole = self._stored(
            kind,
            span.base_s,
            self._chunks(span.base_s),
            lambda line_ids, t: self._is_mine(line_ids, t) & ~self._among(stale, line_ids, t, span.base_s),
        )
        times = sorted({chunk_start(BLOCK_S, t) for _, t in stale})
        rest = self._stored(
            kind,
            BLOCK_S,
            times,
            lambda line_ids, t: self._is_coarse(line_ids, t) & self._among(stale, line_ids, t, span.base_s),
        )
        return [whole, rest]

    def _is_coarse(self, line_ids: Ints, t: Ints) -> Mask:
        return self._is_mine(line_ids, t) & ~self._is_fine(line_ids, t)

    def _chunks(self, step_s: int) -> range:
        return range(chunk_start(step_s, self.span.since), self.span.until, schema.CHUNK_S[step_s])

    def seconds(self, kind: Kind) -> list[_Columns]:
        """Rows of seconds: of the whole range at base 1, else of the blocks that are read second by second."""
        if self.span.base_s == 1:
            times: Sequence[int] = self._chunks(1)
            keep = self._is_mine
        else:
            times, keep = sorted({t for _, t in self._fine}), self._is_mine_and_fine
        new = [frames[kind] for frames in self._new_frames(kind)]
        return [self._stored(kind, 1, times, keep), *self._parts(kind), *new]

    def _is_mine_and_fine(self, line_ids: Ints, t: Ints) -> Mask:
        return self._is_mine(line_ids, t) & self._is_fine(line_ids, t)

    def _stored(
        self, kind: Kind, step_s: int, times: Sequence[int], keep: Callable[[Ints, Ints], Mask]
    ) -> StoredColumns:
        return StoredColumns(
            self.connection, shelf_ids=self.lines.shelf_ids, kind=kind, step_s=step_s, times=times, keep=keep
        )

    def _parts(self, kind: Kind) -> list[Frame]:
        c, since = schema.parts.c, self.span.since - self.span.since % BLOCK_S
        rows = self.connection.execute(
            select(c.data).where(
                c.shelf_id.in_(self.lines.shelf_ids), c.t >= since, c.t < self.span.until, c.kind == kind
            )
        ).scalars()
        frames = [fill(unpack_part(data)) for data in rows]
        return [frame.where(self._is_mine(frame.line_ids, frame.t)) for frame in frames]


_FAR: Final = 1 << 36  # beyond every time: shelf * _FAR + t is one number


class Seconds:
    """Seconds of one kind, parts of one measurement made one; columns when they are asked for."""

    def __init__(self, pieces: Sequence[_Columns], cover: Seconds | None = None) -> None:
        """`cover`: the state of the same lines, to which bands of phases are compared."""
        self._pieces = [piece for piece in pieces if len(piece)]
        self._cover = cover
        self._columns: dict[str, Floats] = {}
        line_ids, t, bucket = (
            np.concatenate([np.empty(0, np.int64), *(getattr(piece, name) for piece in self._pieces)])
            for name in ("line_ids", "t", "bucket")
        )
        self._groups = Groups.by(line_ids, t, bucket)
        self.line_ids, self.t, self.bucket = (self._groups.first(each) for each in (line_ids, t, bucket))

    def __len__(self) -> int:
        return len(self.t)

    def column(self, name: str) -> Floats:
        if name not in self._columns:
            self._columns[name] = self._read(name)
        return self._columns[name]

    def _read(self, name: str) -> Floats:
        side, _, rest = name.partition("_")
        if self._cover is not None and side in ("min", "max") and rest in PHASE_BANDS:
            cover = self._cover
            return band(rest, self.column, lambda c: aligned(cover.frame(c), self.frame(), c))
        if side in ("min", "max"):
            return self._filled(name, rest)
        return self._merged(name)

    def _merged(self, name: str) -> Floats:
        if not self._pieces:
            return np.empty(0)
        joined = np.concatenate([piece.column(name) for piece in self._pieces])
        return self._groups.named_of_second(name, joined)

    def _filled(self, name: str, gauge: str) -> Floats:
        """An extreme of a gauge: in each piece that keeps none, its one sample."""
        samples = GAUGES.get(gauge)
        if samples is None:
            return self._merged(name)
        pieces = []
        for piece in self._pieces:
            kept = piece.column(name)
            pieces.append(np.where(np.isnan(kept), quotient(piece.column(f"sum_{gauge}"), piece.column(samples)), kept))
        joined = np.concatenate([np.empty(0), *pieces])
        return self._groups.named_of_second(name, joined)

    def frame(self, *names: str) -> Frame:
        return Frame(self.line_ids, self.t, self.bucket, {name: self.column(name) for name in names})


class Sums:
    """Rows of some kinds, added up by cell (`control.buckets`)."""

    def __init__(self, source: Source, kinds: Sequence[Kind], cover: Seconds | None = None) -> None:
        self.seconds = [Seconds(source.seconds(kind), cover) for kind in kinds]
        self._pieces: list[_Columns] = [piece for kind in kinds for piece in source.coarse(kind)]
        self._pieces = [piece for piece in [*self._pieces, *self.seconds] if len(piece)]
        self._columns: dict[str, Floats] = {}
        line_ids, t = (
            np.concatenate([np.empty(0, np.int64), *(getattr(piece, name) for piece in self._pieces)])
            for name in ("line_ids", "t")
        )
        cells, self.simulated = source.cells(line_ids, t)
        self._keys, self._t = (cells, line_ids), t
        self._groups = Groups.by(cells)
        self._cells: Ints = self._groups.first(cells)
        self.known = np.zeros(source.num_cells, np.bool_)
        self.known[self._cells] = True

    def column(self, name: str) -> Floats:
        """By cell; NaN where it is not there."""
        if name not in self._columns:
            joined = self._joined(name)
            if name in ONCE_A_SECOND:
                joined = uncovered(self._keys, self._t, joined)
            self._columns[name] = self._by_cell(self._groups.named(name, joined))
        return self._columns[name]

    def most(self, name: str) -> Floats:
        """Of each cell's rows the largest; NaN where it is not there."""
        return self._by_cell(self._groups.most(self._joined(name)))

    def _joined(self, name: str) -> Floats:
        return np.concatenate([np.empty(0), *(piece.column(name) for piece in self._pieces)])

    def _by_cell(self, values: Floats) -> Floats:
        found = np.full(len(self.known), np.nan)
        found[self._cells] = values
        return found


def histograms(source: Source, kind: Kind) -> tuple[Histograms, bool]:
    """Merged histograms by cell; whether one of them is simulated."""
    pieces = [piece for piece in [*source.coarse(kind), *source.seconds(kind)] if len(piece)]
    frame = concat([Frame(p.line_ids, p.t, p.bucket, {COUNT: p.column(COUNT)}) for p in pieces])
    cells, simulated = source.cells(frame.line_ids, frame.t)
    same = Groups.by(cells, frame.bucket)
    counts = same.sums(frame.column(COUNT)).astype(np.int64)
    return Histograms(same.first(cells), same.first(frame.bucket), counts), simulated
