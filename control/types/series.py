"""One metric over time, and the catalogue of metrics."""

from __future__ import annotations

from dataclasses import dataclass

from control.types.values import Provenance


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesPoint:
    """One bucket [t, t + step). `value` None is a gap; `partial`: not all of its seconds are known, or over."""

    t_unix_s: float
    value: float | None
    min: float | None = None
    max: float | None = None
    count: int = 0
    partial: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line: its group's label and its points, in time order, gaps included as None.

    `whole`: a percentile over all of these buckets together, from their merged histograms: it cannot be told from their
    values. None: nothing is known, or the metric is no percentile.
    """

    label: str
    points: tuple[SeriesPoint, ...]
    whole: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesResult:
    """Answer to a series query. `metric`'s unit, help and provenance come from the catalogue `control.metrics`."""

    fleet_id: str
    metric: str
    unit: str
    provenance: Provenance
    step_s: int
    since_unix_s: float
    until_unix_s: float
    by: str
    series: tuple[Series, ...]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricInfo:
    name: str
    unit: str
    help: str
    provenance: Provenance
    groups: tuple[str, ...]  # allowed values of `by`
