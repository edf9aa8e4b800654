"""Control's values to frames in display units: what a chart or a table draws, as Arrow bytes or pandas frames.

All arithmetic of the console is here and in `app.format`; everything is pure. Unknown stays null, so a gap stays a gap.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from app import format
from control.types.commands import Departure
from control.types.events import FleetEvent
from control.types.requests import RequestMove, RequestRecord
from control.types.series import Series, SeriesPoint, SeriesResult
from control.types.workers import RoleInterval

MAX_POINTS = 800  # per line: about the pixels there are
TOPS: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)
NAMES = pa.dictionary(pa.int8(), pa.string())  # a line's name once, not once a point
LINE_SCHEMA = pa.schema(
    [
        ("t", pa.float64()),
        ("value", pa.float32()),
        ("lo", pa.float32()),
        ("hi", pa.float32()),
        ("line", NAMES),
        ("dot", NAMES),
    ]
)
Labelled = tuple[str, Sequence[SeriesPoint]]


def arrow(table: pa.Table) -> bytes:
    """Arrow IPC stream, as Streamlit sends it: made once, shared by all sessions."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def ms(unix_s: float) -> float:
    return unix_s * 1000.0


# --- lines ------------------------------------------------------------


def lines(named: Iterable[Labelled], shift_s: float = 0.0) -> bytes:
    """One row per point: t in ms, value with its min-max band, the line's name, and whether it is drawn as a dot."""
    columns: dict[str, list[float | str | None]] = {name: [] for name in LINE_SCHEMA.names}
    for name, points in named:
        drawn = downsampled(points, MAX_POINTS)
        for index, point in enumerate(drawn):
            columns["t"].append(ms(point.t_unix_s + shift_s))
            columns["value"].append(point.value)
            columns["lo"].append(point.value if point.min is None else point.min)
            columns["hi"].append(point.value if point.max is None else point.max)
            columns["line"].append(name)
            columns["dot"].append(_dot(drawn, index))
    return arrow(pa.table(columns, schema=LINE_SCHEMA))


def _dot(points: Sequence[SeriesPoint], index: int) -> str:
    """partial: not all of its seconds are known, or over; alone: between two gaps, where no line reaches it."""
    if points[index].value is None:
        return ""
    if points[index].partial:
        return "partial"
    beside = (*points[max(0, index - 1) : index], *points[index + 1 : index + 2])
    return "" if any(each.value is not None for each in beside) else "alone"


def downsampled(points: Sequence[SeriesPoint], limit: int) -> Sequence[SeriesPoint]:
    """At most `limit` points. Each one spans several buckets: their mean, with the least and the largest kept."""
    if len(points) <= limit:
        return points
    group = math.ceil(len(points) / limit)
    return [_joined(points[start : start + group]) for start in range(0, len(points), group)]


def _joined(points: Sequence[SeriesPoint]) -> SeriesPoint:
    known = [point for point in points if point.value is not None]
    if not known:
        return SeriesPoint(t_unix_s=points[0].t_unix_s, value=None)
    lows = [point.value if point.min is None else point.min for point in known]
    highs = [point.value if point.max is None else point.max for point in known]
    return SeriesPoint(
        t_unix_s=points[0].t_unix_s,
        value=sum(point.value or 0.0 for point in known) / len(known),
        min=min(low for low in lows if low is not None),
        max=max(high for high in highs if high is not None),
        count=sum(point.count for point in known),
        partial=len(known) < len(points) or any(point.partial for point in known),
    )


def points_of(result: SeriesResult | None, label: str | None = None) -> Sequence[SeriesPoint]:
    """The points of one group; with no label, of the only or first one."""
    if result is None or not result.series:
        return ()
    if label is None:
        return result.series[0].points
    return next((each.points for each in result.series if each.label == label), ())


def newest(points: Sequence[SeriesPoint]) -> float | None:
    """The youngest known value, unless it is older than the last ten buckets."""
    return next((point.value for point in reversed(points[-10:]) if point.value is not None), None)


def mean(points: Sequence[SeriesPoint]) -> float | None:
    """Over the buckets with data."""
    known = [point.value for point in points if point.value is not None]
    return sum(known) / len(known) if known else None


def means_together(
    now: Sequence[SeriesPoint], then: Sequence[SeriesPoint], shift_s: float, step_s: int
) -> tuple[float | None, float | None]:
    """Means over the buckets of `now` that are known in both windows: `then` is `shift_s` earlier, in steps of
    `step_s`, which are as wide as those of `now` or wider."""
    shift_s = round(shift_s / step_s) * step_s
    before = {point.t_unix_s + shift_s: point.value for point in then if point.value is not None}
    found = [(point.value, before.get(point.t_unix_s - point.t_unix_s % step_s)) for point in now]
    pairs = [(value, earlier) for value, earlier in found if value is not None and earlier is not None]
    if not pairs:
        return None, None
    return sum(value for value, _ in pairs) / len(pairs), sum(value for _, value in pairs) / len(pairs)


def course(points: Sequence[SeriesPoint]) -> tuple[float | None, ...]:
    """A sparkline's values from the first known one, each as it was read: percentiles are never averaged. Without the
    youngest bucket: its requests are still running."""
    known = [index for index, point in enumerate(points) if point.value is not None]
    return tuple(point.value for point in points[known[0] : -1]) if known else ()


def since(named: Iterable[Labelled], since_unix_s: float) -> list[Labelled]:
    """Only the points from then on: even an unknown value would stretch the time axis."""
    return [(name, [point for point in points if point.t_unix_s >= since_unix_s]) for name, points in named]


def begin(named: Iterable[Labelled], since_unix_s: float, until_unix_s: float, least_s: float) -> float:
    """Where a time axis starts: a fleet younger than its window does not leave the chart empty before it."""
    firsts = (next((p.t_unix_s for p in points if p.value is not None), until_unix_s) for _, points in named)
    first = min(firsts, default=since_unix_s)
    if first - since_unix_s < 0.05 * (until_unix_s - since_unix_s):
        return since_unix_s
    return max(since_unix_s, min(first, until_unix_s - least_s))


def gaps(
    series: Iterable[Sequence[SeriesPoint]], step_s: float, since_unix_s: float, until_unix_s: float, least_s: float
) -> list[tuple[float, float]]:
    """[start, end) of each time of `least_s` or more in which none of them is known, in time order."""
    known = sorted({point.t_unix_s for points in series for point in points if point.value is not None})
    edges = [since_unix_s, *(each + step_s for each in known)], [*known, until_unix_s]
    return [(start, end) for start, end in zip(*edges, strict=True) if end - start >= least_s]


def carried(points: Sequence[SeriesPoint], limit_s: float) -> list[SeriesPoint]:
    """A count that holds until it is seen to change: gaps up to `limit_s` (a slow tick) keep the last value."""
    found: list[SeriesPoint] = []
    seen: SeriesPoint | None = None
    for point in points:
        if point.value is not None:
            seen = point
        elif seen is not None and point.t_unix_s - seen.t_unix_s <= limit_s:
            point = SeriesPoint(t_unix_s=point.t_unix_s, value=seen.value)
        found.append(point)
    return found


def span(since_unix_s: float, until_unix_s: float, top: float, bottom: float = 0.0) -> bytes:
    """Two invisible points that pin both axes, so that a refresh changes data and never the spec."""
    return arrow(pa.table({"t": [ms(since_unix_s), ms(until_unix_s)], "value": [bottom, top]}))


def window(chosen: tuple[float, float] | None) -> bytes:
    """The window that is looked at, as one rectangle; none while it is live."""
    columns = {"start": [ms(chosen[0])] if chosen else [], "end": [ms(chosen[1])] if chosen else []}
    return arrow(pa.table(columns, schema=pa.schema([("start", pa.float64()), ("end", pa.float64())])))


def top_of(values: Iterable[float | None]) -> float:
    """The y axis of a fraction ends at the first of TOPS that holds every value."""
    largest = max((value for value in values if value is not None), default=0.0)
    return next((top for top in TOPS if largest <= top), largest)


def largest(named: Iterable[Labelled]) -> float | None:
    values = (value for _, points in named for point in points for value in (point.value, point.max))
    return max((value for value in values if value is not None), default=None)


# --- bars ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Away:
    """A worker was away over [start, end); end None: still. `kind`: how it went, "" where nobody saw it."""

    worker_id: str
    kind: str
    start_unix_s: float
    end_unix_s: float | None
    reason: str


def absences(events: Iterable[FleetEvent]) -> list[Away]:
    """From each end of a worker to its next life, oldest first."""
    found: list[Away] = []
    ended: dict[str, FleetEvent] = {}
    for event in sorted(events, key=lambda each: each.at_unix_s):
        if event.kind in ("died", "stopped"):
            ended[event.worker_id] = event
        elif event.kind == "restarted":
            before = ended.pop(event.worker_id, None)
            start = before.at_unix_s if before else event.at_unix_s - (event.away_s or 0.0)
            kind = before.kind if before else ""
            found.append(Away(event.worker_id, kind, start, event.at_unix_s, event.reason))
    return [*found, *(Away(each.worker_id, each.kind, each.at_unix_s, None, each.reason) for each in ended.values())]


def intervals(
    found: Iterable[RoleInterval], since_unix_s: float, now_unix_s: float, away: Iterable[Away] = ()
) -> bytes:
    """Role intervals and absences [start, end) clipped to the window, as bars."""
    held = [
        (each.worker_id, each.start_unix_s, each.end_unix_s, str(each.role), f"{each.role}, {each.state}")
        for each in found
    ]
    gone = [(each.worker_id, each.start_unix_s, each.end_unix_s, "away", "away") for each in away]
    window_s = now_unix_s - since_unix_s  # a bar too short for its words carries none
    rows = [
        {
            "worker": worker,
            "start": ms(max(start, since_unix_s)),
            "end": ms(end or now_unix_s),
            "role": role,
            "text": text if (end or now_unix_s) - max(start, since_unix_s) > 0.08 * window_s else "",
        }
        for worker, start, end, role, text in (*held, *gone)
        if (end or now_unix_s) > since_unix_s
    ]
    schema = pa.schema(
        [
            ("worker", pa.string()),
            ("start", pa.float64()),
            ("end", pa.float64()),
            ("role", pa.string()),
            ("text", pa.string()),
        ]
    )
    return arrow(pa.Table.from_pylist(rows, schema))


def stages(record: RequestRecord) -> list[tuple[str, float, float]]:
    """(stage, start, end) in seconds after arrival, in order; what the record cannot attribute is one last stage."""
    found: list[tuple[str, float, float]] = []
    at = 0.0
    for name, length in (("queued", record.queue_s), ("prefill", record.prefill_s), ("handoff", record.handoff_s)):
        if length is not None and length > 0:
            found.append((name, at, at + length))
            at += length
    if record.e2e_s is not None and record.e2e_s > at:
        found.append(("decode" if record.prefill_s is not None else "not attributed", at, record.e2e_s))
    return found


def gone_share(departure: Departure) -> float:
    """Of the sequences that decoded on a worker, the part that does not any more."""
    if not departure.num_sequences:
        return 1.0
    return 1.0 - departure.num_left / departure.num_sequences


def stage_bars(record: RequestRecord) -> bytes:
    found = stages(record)
    columns = {
        "stage": [name for name, _, _ in found],
        "start": [start for _, start, _ in found],
        "end": [end for _, _, end in found],
        "text": [format.duration(end - start) for _, start, end in found],
    }
    schema = pa.schema([("stage", pa.string()), ("start", pa.float64()), ("end", pa.float64()), ("text", pa.string())])
    return arrow(pa.table(columns, schema=schema))


# --- explore ------------------------------------------------------------


def together(first: SeriesResult, second: SeriesResult) -> SeriesResult:
    """Two metrics of one unit as one result: each line is named after its metric, and its group where there are
    several."""
    named = [
        replace(line, label=f"{each.metric}, {line.label}" if len(each.series) > 1 else each.metric)
        for each in (first, second)
        for line in each.series
    ]
    return replace(first, series=tuple(named))


PERCENTILE = re.compile(r"_p\d+_s$")


def is_percentile(metric: str) -> bool:
    """Of a percentile neither buckets nor points may be averaged; wider ones come from merged histograms."""
    return PERCENTILE.search(metric) is not None


def busiest(result: SeriesResult, limit: int) -> tuple[tuple[Series, ...], int]:
    """The `limit` groups with the largest mean, in the result's order, and how many were left out."""
    if len(result.series) <= limit:
        return result.series, 0
    ranked = sorted(result.series, key=_mean, reverse=True)[:limit]
    kept = {each.label for each in ranked}
    return tuple(each for each in result.series if each.label in kept), len(result.series) - limit


def _mean(series: Series) -> float:
    found = mean(series.points)
    return -math.inf if found is None else found


STEPS_S: tuple[int, ...] = (1, 10, 60, 600, 3600)
NICE_STEPS_S: tuple[int, ...] = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)


def percentile_step(range_s: float, asked_s: int) -> int:
    """As asked, or the finest nice step with which a line is drawn as it was read: joining its points would average."""
    return next((step for step in NICE_STEPS_S if step >= asked_s and range_s / step <= MAX_POINTS - 1), asked_s)


def step_for(range_s: float) -> int:
    """The finest stored step that keeps a line within MAX_POINTS points."""
    return next((step for step in STEPS_S if range_s / step <= MAX_POINTS + 120), STEPS_S[-1])


# --- marks and axes ------------------------------------------------------------


def first_token(record: RequestRecord) -> bytes:
    """The moment of the first token, as a rule over the stage bars."""
    known = record.ttft_s is not None
    columns = {
        "at": [record.ttft_s] if known else [],
        "label": [f"first token {format.duration(record.ttft_s)}"] if known else [],
    }
    return arrow(pa.table(columns, schema=pa.schema([("at", pa.float64()), ("label", pa.string())])))


def request_moves(record: RequestRecord, looks: Mapping[str, str]) -> bytes:
    """Where it went on elsewhere: a row of their own below the stages, each with its target."""
    late_s = 0.8 * (record.e2e_s or 0.0)  # a label beyond it stands to the left
    columns = {
        "at": [each.at_s for each in record.moves],
        "stage": ["went on"] * len(record.moves),
        "kind": [looks[each.kind] for each in record.moves],
        "label": [_target(each) for each in record.moves],
        "late": [each.at_s > late_s for each in record.moves],
    }
    kinds = (pa.float64(), pa.string(), pa.string(), pa.string(), pa.bool_())
    return arrow(pa.table(columns, schema=pa.schema(list(zip(columns, kinds, strict=True)))))


def _target(move: RequestMove) -> str:
    stall = "" if move.stall_s is None else f", stall {format.duration(move.stall_s)}"
    return f"{move.kind} to {move.to_worker}{stall}" if move.to_worker else f"{move.kind}: ended there"


def axis_span(result: SeriesResult, named: Iterable[Labelled]) -> bytes:
    """Pins the axes of any metric: from zero to a little above its largest."""
    drawn = [(name, list(points)) for name, points in named]
    top = largest(drawn) or 0.0
    if result.unit in ("fraction", "0..1"):
        return span(result.since_unix_s, result.until_unix_s, top_of([top]))
    return span(result.since_unix_s, result.until_unix_s, top * 1.05 if top > 0 else 1.0)
