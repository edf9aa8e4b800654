"""What is known about many buckets at once: columns of sums, and histograms, as arrays; None of a number is NaN here.

A *cell* is one bucket of one group; cells are numbered group after group, in each by time, and every array is by cell.
A column that is nowhere there may be a single NaN, which stands for all cells. Not decided here: what a metric is
(`control.metrics`), how sums are read (`control.history.sums`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engine.histogram import NUM_BUCKETS, value_of

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
#: The sums of a name, by cell.
Columns = Callable[[str], Floats]
UNKNOWN: Final = np.array(np.nan)


def no_columns(_name: str) -> Floats:
    return UNKNOWN


@dataclass(frozen=True, slots=True)
class Histograms:
    """Rows of (cell, bucket of duration, count), sorted by cell and bucket, each pair once."""

    cells: Ints
    buckets: Ints
    counts: Ints

    def totals(self, num_cells: int) -> Floats:
        """Durations counted in each cell."""
        return np.bincount(self.cells, self.counts, num_cells).astype(np.float64)

    def quantile(self, q: float) -> Floats:
        """As `engine.histogram.quantile`, of each cell up to the last that has any; NaN where nothing was counted."""
        totals = self.totals(0)
        before = np.cumsum(totals) - totals
        rank = np.maximum(1, np.ceil(q * totals))
        reached = np.flatnonzero(np.cumsum(self.counts) - before[self.cells] >= rank[self.cells])
        cells, first = np.unique(self.cells[reached], return_index=True)
        found = np.full(len(totals), np.nan)
        found[cells] = _VALUES[self.buckets[reached[first]]]
        return found

    def merged(self, width: int) -> Histograms:
        """Each `width` cells as one."""
        keys = self.cells // width * NUM_BUCKETS + self.buckets
        found, at = np.unique(keys, return_inverse=True)
        counts = np.bincount(at, self.counts, len(found)).astype(np.int64)
        return Histograms(found // NUM_BUCKETS, found % NUM_BUCKETS, counts)

    def by_cell(self) -> dict[int, dict[int, int]]:
        """Of each cell that has any."""
        found: dict[int, dict[int, int]] = {}
        for cell, bucket, count in zip(self.cells.tolist(), self.buckets.tolist(), self.counts.tolist(), strict=True):
            found.setdefault(cell, {})[bucket] = count
        return found


_VALUES: Final = np.array([value_of(bucket) for bucket in range(NUM_BUCKETS)])
_NONE: Final = np.empty(0, np.int64)
NO_HISTOGRAMS: Final = Histograms(_NONE, _NONE, _NONE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Buckets:
    """What is known in each cell. `length_s`: of the bucket, as far as it has been read; `cover_s`: seconds of it in
    which the group's work is known."""

    length_s: Floats
    cover_s: Floats = field(default_factory=lambda: np.array(0.0))
    work: Columns = no_columns
    cover: Columns = no_columns
    fleet_cover: Columns = no_columns  # of the whole fleet at that time, where a metric asks for it
    traffic: Columns = no_columns
    latencies: Histograms = NO_HISTOGRAMS


@dataclass(frozen=True, slots=True)
class Values:
    """By cell: mean over the bucket, and the band of its seconds (NaN: not kept)."""

    value: Floats
    min: Floats = field(default_factory=lambda: UNKNOWN)
    max: Floats = field(default_factory=lambda: UNKNOWN)


def number(column: Floats) -> Floats:
    """What is not there is nothing: the sum of no rows."""
    return np.where(np.isnan(column), 0.0, column)


def ratio(part: Floats, whole: Floats) -> Floats:
    """NaN where there is no whole."""
    found = np.full(np.broadcast_shapes(np.shape(part), np.shape(whole)), np.nan)
    np.divide(part, whole, out=found, where=np.broadcast_to(whole > 0, found.shape))
    return found


def where(is_known: npt.NDArray[Any], value: Floats, low: Floats = UNKNOWN, high: Floats = UNKNOWN) -> Values:
    """These values, and a gap elsewhere."""
    return Values(*(np.where(is_known, each, np.nan) for each in (value, low, high)))
