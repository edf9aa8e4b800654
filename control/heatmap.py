"""A latency heatmap: histograms by time as cells of log-spaced bins. Pure; no count is changed on the way.

Decided here: the bins, which are whole runs of histogram buckets, so that a request is in one bin for certain; the
width of a column; which bound of the SLO is drawn. Not decided here: where the counts come from
(`control.history.heatmaps`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from control.types.requests import LatencyKind, Slo
from engine.histogram import GAMMA, MIN_S, NUM_BUCKETS, bucket_of

#: Histogram buckets in one bin: a bin ends 27% above its start, about ten bins to a factor of ten.
BIN_BUCKETS: Final = 12
NUM_BINS: Final = -(-NUM_BUCKETS // BIN_BUCKETS)
MAX_COLUMNS: Final = 150
#: Widths of a column; each is a multiple of a stored step.
COLUMN_STEPS_S: Final = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400)
KIND_WORDS: Final[Mapping[LatencyKind, str]] = {
    "ttft": "time to first token",
    "e2e": "whole request, of those that were served",
    "gap": "largest gap between two tokens",
}


@dataclass(frozen=True, slots=True)
class Cells:
    """Bin i ends at edges_s[i + 1]; cells by column and bin, in this order."""

    edges_s: tuple[float, ...]
    columns: tuple[int, ...]
    bins: tuple[int, ...]
    counts: tuple[float, ...]


def column_step(length_s: float) -> int:
    """The smallest width with at most MAX_COLUMNS columns, or the largest there is."""
    return next((step_s for step_s in COLUMN_STEPS_S if length_s / step_s <= MAX_COLUMNS), COLUMN_STEPS_S[-1])


def edge_s(bin_number: int) -> float:
    """Where a bin starts; a time that is exactly there is in the bin below. The first holds all that is shorter, the
    last all that is longer than any bucket."""
    return 0.0 if bin_number <= 0 else MIN_S * GAMMA ** (bin_number * BIN_BUCKETS - 1)


def cells_of(counts: Mapping[tuple[int, int], float], bound_s: float | None) -> Cells:
    """From counts by (column, bin); the bins reach over all that are in use, and over the bound."""
    used = [bin_number for (_, bin_number), count in counts.items() if count > 0]
    if bound_s is not None:
        used.append(bucket_of(bound_s) // BIN_BUCKETS)
    if not used:
        return Cells((), (), (), ())
    first, last = min(used), max(used)
    found = sorted((column, number - first, count) for (column, number), count in counts.items() if count > 0)
    return Cells(
        edges_s=tuple(edge_s(number) for number in range(first, last + 2)),
        columns=tuple(column for column, _, _ in found),
        bins=tuple(number for _, number, _ in found),
        counts=tuple(count for _, _, count in found),
    )


def binned(histograms: Mapping[int, Mapping[int, int]]) -> dict[tuple[int, int], float]:
    """Histograms by column, as counts by (column, bin)."""
    found: dict[tuple[int, int], float] = {}
    for column, counts in histograms.items():
        for bucket, count in counts.items():
            key = (column, bucket // BIN_BUCKETS)
            found[key] = found.get(key, 0.0) + count
    return found


def bound_of(kind: LatencyKind, slo: Slo) -> tuple[float | None, str]:
    """The bound that is drawn, and in words what it is."""
    match kind:
        case "ttft":
            more_s = slo.ttft_per_token_s * 1000
            return slo.ttft_base_s, f"SLO {slo.ttft_base_s:g} s + {more_s:g} ms per uncached prompt token"
        case "gap":
            return slo.max_gap_s, f"SLO {slo.max_gap_s:g} s"
        case "e2e":
            return None, "the SLO has no bound on the whole request"
