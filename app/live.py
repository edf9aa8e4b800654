"""A live series: the last points of one metric in one grouping, of which only the young end is read again. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from control.types.series import Series, SeriesPoint, SeriesResult


@dataclass(frozen=True, slots=True)
class LiveKey:
    """One live series: a metric in one grouping over the last `window_s`, in buckets of `step_s`."""

    metric: str
    by: str
    window_s: int
    step_s: int


@dataclass(slots=True)
class LiveSeries:
    """The points of one LiveKey. Only the youngest are read again."""

    key: LiveKey
    wanted_unix_s: float
    read_unix_s: float = 0.0
    result: SeriesResult | None = None
    error: str = ""
    version: int = 0

    def take(self, fresh: SeriesResult, now_unix_s: float) -> None:
        """The young end, as read now."""
        since = now_unix_s - self.key.window_s
        self.result = fresh if self.result is None else merged(self.result, fresh, since)
        self.error, self.read_unix_s = "", now_unix_s
        self.version += 1


def merged(old: SeriesResult, fresh: SeriesResult, since_unix_s: float) -> SeriesResult:
    """The points of `old` before `fresh` begins, then `fresh`; nothing before `since_unix_s`."""
    labels = [each.label for each in old.series]
    labels += [each.label for each in fresh.series if each.label not in labels]
    before = {each.label: each.points for each in old.series}
    after = {each.label: each.points for each in fresh.series}
    edge = min((points[0].t_unix_s for points in after.values() if points), default=fresh.since_unix_s)
    series = []
    for label in labels:
        kept: list[SeriesPoint] = [
            point for point in before.get(label, ()) if since_unix_s - old.step_s < point.t_unix_s < edge
        ]
        points = (*kept, *after.get(label, ()))
        if points:
            series.append(Series(label=label, points=points))
    return SeriesResult(
        fleet_id=fresh.fleet_id,
        metric=fresh.metric,
        unit=fresh.unit,
        provenance=fresh.provenance,
        step_s=fresh.step_s,
        since_unix_s=since_unix_s,
        until_unix_s=fresh.until_unix_s,
        by=fresh.by,
        series=tuple(series),
        note=fresh.note,
    )
