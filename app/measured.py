"""Derived beside measured, over time: which two series belong together, and their difference. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app import frames, theme
from control.types.series import SeriesPoint, SeriesResult

DERIVED, MEASURED, DIFFERENCE = "Derived, both phases", "Measured by the device", "Derived - measured"
NAMES = (DERIVED, MEASURED, DIFFERENCE)
COLORS = (theme.PREFILL, theme.DECODE, theme.MIXED)
DASHES: tuple[tuple[int, ...], ...] = ((1, 0), (6, 3), (2, 2))


@dataclass(frozen=True, slots=True)
class Pair:
    """The same thing by two sources: what was done against what the device could have done in all the time."""

    words: str
    derived: str
    measured: str


PAIRS: dict[str, Pair] = {
    "compute": Pair("Compute", "compute_wall", "gpm_tensor_active"),
    "bandwidth": Pair("Bandwidth", "bandwidth_wall", "gpm_dram_active"),
}


def lines(derived: SeriesResult | None, measured: SeriesResult | None, worker_id: str) -> list[frames.Labelled]:
    """Three lines of one worker; none where the device says nothing."""
    ours, theirs = frames.points_of(derived, worker_id), frames.points_of(measured, worker_id)
    if not any(point.value is not None for point in theirs):
        return []
    return [(DERIVED, ours), (MEASURED, theirs), (DIFFERENCE, difference(ours, theirs))]


def difference(ours: Sequence[SeriesPoint], theirs: Sequence[SeriesPoint]) -> list[SeriesPoint]:
    """Where both are known; elsewhere a gap."""
    known = {point.t_unix_s: point.value for point in theirs}
    return [
        SeriesPoint(t_unix_s=point.t_unix_s, value=_minus(point.value, known.get(point.t_unix_s))) for point in ours
    ]


def _minus(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours - theirs
