"""Rows of points as columns: put together, made one where their keys are equal, rolled up. Pure, on numpy arrays.

A row is one line in one bucket; rows of a histogram are one line, one bucket of time and one of duration. NaN is "not
there", which is not zero: a column adds up or keeps its extreme over the rows that have it. Decided here: how two rows
become one, in two cases: of the same second (`merge`: parts of one measurement), or of one coarser bucket (`roll`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from control.history.codec import Floats, Ints
from control.points import GAUGES, ONCE_A_SECOND, PHASE_BANDS, Row

COUNT: Final = "count"  # the one column of a histogram's rows
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Frame:
    """`bucket` is the duration's, 0 where there is none."""

    line_ids: Ints
    t: Ints
    bucket: Ints
    columns: Mapping[str, Floats]

    def __len__(self) -> int:
        return len(self.t)

    def where(self, rows: Mask | Ints) -> Frame:
        columns = {name: values[rows] for name, values in self.columns.items()}
        return Frame(self.line_ids[rows], self.t[rows], self.bucket[rows], columns)

    def column(self, name: str) -> Floats:
        found = self.columns.get(name)
        return np.full(len(self), np.nan) if found is None else found


_NONE: Final = np.empty(0, np.int64)
EMPTY: Final = Frame(_NONE, _NONE, _NONE, {})


def of_rows(rows: Sequence[tuple[int, int, Row]]) -> Frame:
    """(line id, second, row) as a frame."""
    names = list(dict.fromkeys(name for _, _, row in rows for name in row))
    values = np.array([[row.get(name, np.nan) for name in names] for _, _, row in rows], np.float64)
    keys = np.array([(line_id, t) for line_id, t, _ in rows], np.int64).reshape(-1, 2)
    columns = {name: values[:, index] for index, name in enumerate(names)}
    return Frame(keys[:, 0], keys[:, 1], np.zeros(len(rows), np.int64), columns)


def of_counts(rows: Iterable[tuple[int, int, Mapping[int, int]]]) -> Frame:
    """(line id, second, histogram) as a frame."""
    flat = [(line_id, t, bucket, count) for line_id, t, counts in rows for bucket, count in counts.items()]
    table = np.array(flat, np.int64).reshape(-1, 4)
    return Frame(table[:, 0], table[:, 1], table[:, 2], {COUNT: table[:, 3].astype(np.float64)})


def concat(frames: Sequence[Frame]) -> Frame:
    """All rows of all; a column that one of them lacks is not there in its rows."""
    frames = [frame for frame in frames if len(frame)]
    if len(frames) < 2:
        return frames[0] if frames else EMPTY
    names = dict.fromkeys(name for frame in frames for name in frame.columns)
    return Frame(
        np.concatenate([frame.line_ids for frame in frames]),
        np.concatenate([frame.t for frame in frames]),
        np.concatenate([frame.bucket for frame in frames]),
        {name: np.concatenate([frame.column(name) for frame in frames]) for name in names},
    )


@dataclass(frozen=True, slots=True)
class Groups:
    """Which rows belong together: `order` sorts them by group, each begins at one of `starts`."""

    order: Ints
    starts: Ints
    is_sorted: bool = field(default=False)

    @classmethod
    def by(cls, *keys: npt.NDArray[Any]) -> Groups:
        """Rows with equal keys; groups are sorted by the first key, then by the second, ..."""
        order = np.lexsort(keys[::-1])
        new = np.zeros(len(order), np.bool_)
        new[:1] = True
        for key in keys:
            in_order = key[order]
            new[1:] |= in_order[1:] != in_order[:-1]
        return cls(order, np.flatnonzero(new), bool((order[1:] > order[:-1]).all()))

    def first(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The value of each group's first row: of a key, everyone's."""
        return values[self.order[self.starts]]

    def frame(self, line_ids: Ints, t: Ints, bucket: Ints, columns: Mapping[str, Floats]) -> Frame:
        """One row for each group, where `columns` are by group already."""
        return Frame(self.first(line_ids), self.first(t), self.first(bucket), columns)

    def sums(self, values: Floats) -> Floats:
        return self._reduce(np.add, values, 0.0)

    def least(self, values: Floats) -> Floats:
        return self._reduce(np.minimum, values, np.inf)

    def most(self, values: Floats) -> Floats:
        return self._reduce(np.maximum, values, -np.inf)

    def _reduce(self, ufunc: np.ufunc, values: Floats, neutral: float) -> Floats:
        """Over the rows that have a value; NaN where none has."""
        if not len(self.starts):
            return np.empty(0)
        ordered = values if self.is_sorted else values[self.order]
        if len(self.starts) == len(ordered):
            return ordered
        absent = np.isnan(ordered)
        if not absent.any():
            return np.asarray(ufunc.reduceat(ordered, self.starts))
        found = np.asarray(ufunc.reduceat(np.where(absent, neutral, ordered), self.starts))
        return np.where(np.logical_and.reduceat(absent, self.starts), np.nan, found)

    def named(self, name: str, values: Floats) -> Floats:
        """One column, as its name says: sums add up, extremes stay."""
        if name.startswith("min_"):
            return self.least(values)
        return self.most(values) if name.startswith("max_") else self.sums(values)

    def named_of_second(self, name: str, values: Floats) -> Floats:
        """The same of rows that tell of one second: it counts once."""
        return self.most(values) if name in ONCE_A_SECOND else self.named(name, values)


def merge(frame: Frame) -> Frame:
    """Rows of one line and second become one. Sorted by line, time and bucket."""
    if not len(frame):
        return frame
    groups = Groups.by(frame.line_ids, frame.t, frame.bucket)
    columns = {name: groups.named_of_second(name, values) for name, values in frame.columns.items()}
    return groups.frame(frame.line_ids, frame.t, frame.bucket, columns)


def roll(frame: Frame, step_s: int) -> Frame:
    """Rows of one line become one in each coarser bucket. Sorted like `merge`."""
    if not len(frame):
        return frame
    t = frame.t - frame.t % step_s
    keys = (frame.line_ids, t, frame.bucket)
    groups = Groups.by(*keys)
    columns = {
        name: groups.named(name, uncovered(keys, frame.t, values) if name in ONCE_A_SECOND else values)
        for name, values in frame.columns.items()
    }
    return groups.frame(*keys, columns)


def uncovered(keys: Sequence[Ints], t: Ints, widths: Floats) -> Floats:
    """Of each row, the seconds of [t, t + width) that no row before it with equal keys covers; NaN where no width is.

    A slot of a long absence may be wider than a second, and who was read meanwhile has rows of his own inside. Rows
    of one second each do not meet: a line has one of each second.
    """
    if not (widths > 1.0).any():  # of NaN neither
        return widths
    order = np.lexsort((t, *reversed(keys)))
    begins = t[order] - t.min(initial=0)
    ends = begins + np.nan_to_num(widths[order])
    is_new = np.zeros(len(order), np.bool_)
    for key in keys:
        is_new[1:] |= key[order][1:] != key[order][:-1]
    apart = np.cumsum(is_new) * (ends.max(initial=0.0) + 1.0)  # so that no group reaches into the next
    reached = np.maximum.accumulate(ends + apart)
    before = np.concatenate([[0.0], reached[:-1]])[: len(order)]
    found = np.empty(len(order))
    found[order] = np.maximum(reached - np.maximum(begins + apart, before), 0.0)
    return np.where(np.isnan(widths), np.nan, found)


# --- what a second's extremes are ------------------------------------------------------------------------------------


def thin(frame: Frame) -> Frame:
    """A second without the extremes that `fill` finds again: those of a single sample."""
    columns = dict(frame.columns)
    for name, samples in GAUGES.items():
        for side in ("min", "max"):
            if (extreme := columns.get(f"{side}_{name}")) is not None:
                is_mean = extreme == _mean(frame, name, samples)
                columns[f"{side}_{name}"] = np.where(is_mean, np.nan, extreme)
    return Frame(frame.line_ids, frame.t, frame.bucket, columns)


def fill(frame: Frame) -> Frame:
    """A second with the extremes of its gauges: where none is kept, its one sample."""
    columns = dict(frame.columns)
    for name, samples in GAUGES.items():
        if f"sum_{name}" in columns:
            mean = _mean(frame, name, samples)
            for side in ("min", "max"):
                kept = frame.column(f"{side}_{name}")
                columns[f"{side}_{name}"] = np.where(np.isnan(kept), mean, kept)
    return Frame(frame.line_ids, frame.t, frame.bucket, columns)


def _mean(frame: Frame, name: str, samples: str) -> Floats:
    return quotient(frame.column(f"sum_{name}"), frame.column(samples))


def quotient(part: Floats, whole: Floats) -> Floats:
    """NaN where there is no whole."""
    found = np.full(len(part), np.nan)
    np.divide(part, whole, out=found, where=whole > 0)
    return found


def with_bands(phase: Frame, state: Frame) -> Frame:
    """Whole seconds of one phase with the smallest and largest of each band: the second's own value.

    `state`: the same lines' seconds. What is compared with a capacity is compared with this line's in this second, so
    a worker that held a role for half of a second, or was known for half of it, has no false extreme there.
    """
    columns = dict(phase.columns)
    for name in PHASE_BANDS:
        columns[f"min_{name}"] = columns[f"max_{name}"] = band(name, phase.column, lambda c: aligned(state, phase, c))
    return Frame(phase.line_ids, phase.t, phase.bucket, columns)


def aligned(state: Frame, phase: Frame, name: str) -> Floats:
    """A column of `state`, which is merged, in the rows of `phase`; NaN where it has no such row."""
    found = np.full(len(phase), np.nan)
    if not len(state):
        return found
    width = int(max(state.t.max(), phase.t.max(initial=0))) + 1
    have, want = state.line_ids * width + state.t, phase.line_ids * width + phase.t
    at = np.minimum(np.searchsorted(have, want), len(have) - 1)
    return np.where(have[at] == want, state.column(name)[at], np.nan)


def band(name: str, work: Any, cover: Any) -> Floats:
    """One band of seconds, from columns of their work and of what is known of them."""
    if name in _ROOMS:
        part, room = _ROOMS[name]
        return quotient(work(part), work(room))
    seconds = work("num_s")
    if name in _WALLS:
        part, whole = _WALLS[name]
        return quotient(work(part) * cover("num_cover_s"), cover(whole) * seconds)
    return quotient(work(name), seconds)


_ROOMS: Final = {"compute_in_phase": ("flops", "flops_room"), "bandwidth_in_phase": ("bytes", "bytes_room")}
_WALLS: Final = {
    "compute_wall": ("flops", "flops_peak"),
    "bandwidth_wall": ("bytes", "bytes_peak"),
    "busy_wall": ("busy_s", "worker_s"),
}
