"""Explore: any metric, any range in the retention, any grouping, against an earlier window; the URL restores the view.

A view is fixed once it is drawn: "Now" in the range means the moment of drawing, and a drag narrows it.
"""

from __future__ import annotations

from typing import Literal

import streamlit as st

from app import cards, charts, draw, format, frames, happened, push, session, tables, url, words
from app.happened import Happened
from app.source import Hub
from app.views import day
from control.errors import ControlError
from control.types.fleet import FleetSnapshot
from control.types.series import MetricInfo, SeriesResult

RANGES: dict[str, int] = {"15m": 900, "1h": 3600, "6h": 21_600, "24h": 86_400, "7d": 604_800, "30d": 2_592_000}
RANGE_WORDS: dict[str, str] = {
    "15m": "15 min",
    "1h": "1 hour",
    "6h": "6 hours",
    "24h": "24 hours",
    "7d": "7 days",
    "30d": "30 days",
}
COMPARED: dict[str, int | None] = {"none": 0, "before": None, "1h": 3600, "1d": 86_400, "7d": 604_800}
COMPARED_WORDS: dict[str, str] = {
    "none": "Nothing",
    "before": "The window before",
    "1h": "1 hour earlier",
    "1d": "1 day earlier",
    "7d": "7 days earlier",
}
STEP_WORDS: dict[str, str] = {"auto": "Auto", "1": "1 s", "10": "10 s", "60": "1 min", "600": "10 min", "3600": "1 h"}
GROUP_WORDS: dict[str, str] = {"fleet": "Whole fleet", "role": "Role", "worker": "Worker", "rule": "Route rule"}
MAX_LINES = 12
NO_OTHER = "none"
NUM_TOLD = 4
OWN = "own_window"  # of the address


def page(hub: Hub, snapshot: FleetSnapshot) -> None:
    """Controls, chart, table, download."""
    try:
        catalogue = hub.cached("metrics", 300.0, lambda plane: plane.metrics())
    except ControlError as error:
        st.html(cards.banner(f"The metric catalogue did not come: {error}", "broken", alert=True))
        return
    metric, also, by, step, shift = _controls(catalogue)
    since, until = _range(snapshot.at_unix_s)
    step_s = frames.step_for(until - since) if step == "auto" else int(step)
    if frames.is_percentile(metric.name):
        step_s = frames.percentile_step(until - since, 1 if step == "auto" else step_s)
    shift_s = (until - since) if shift is None else float(shift)
    try:
        result = _read_all(hub, metric, also, since, until, step_s, by)
        past = _read_all(hub, metric, also, since - shift_s, until - shift_s, step_s, by) if shift_s else None
        found = happened.read(hub, since, until)
    except ControlError as error:
        st.html(cards.banner(str(error), "broken", alert=True))
        return
    _chart(hub, metric, result, past, found, shift_s)
    _numbers(hub, metric, also, result, past)


def _controls(catalogue: list[MetricInfo]) -> tuple[MetricInfo, str, str, str, int | None]:
    """Metric, another one beside it, grouping, step, comparison: each in the URL under its own name."""
    known = {each.name: each for each in catalogue}
    first, beside, second, third, fourth = st.columns([2.2, 2.2, 1.3, 1, 1.6], vertical_alignment="bottom")
    default = "decode_bandwidth_wall" if "decode_bandwidth_wall" in known else next(iter(known))
    metric = known[url.select("Metric", list(known), name="metric", default=default, place=first)]
    groups = {each: GROUP_WORDS.get(each, each) for each in metric.groups}
    by = url.select("Group by", groups, name="by", default=metric.groups[0], place=second)
    others = {NO_OTHER: "Nothing", **{each.name: each.name for each in catalogue if _goes_with(each, metric, by)}}
    also = url.select("Beside it", others, name="also", default=NO_OTHER, place=beside)
    step = url.select("Step", STEP_WORDS, name="step", default="auto", place=third)
    versus = url.select("Compare with", COMPARED_WORDS, name="versus", default="none", place=fourth)
    _range_control()
    return metric, "" if also == NO_OTHER else also, by, step, COMPARED[versus]


def _range_control() -> None:
    """A window of the address is none of the ranges: it is shown as what is chosen, and any range leaves it."""
    if day.past() is None:
        url.segmented("Range", RANGE_WORDS, name="range", default="1h", on_change=_leave_zoom)
        return
    st.session_state[OWN] = OWN
    words_of = {OWN: "This window", **RANGE_WORDS}
    st.segmented_control(
        "Range", list(words_of), key=OWN, required=True, format_func=words_of.__getitem__, on_change=_choose
    )


def _choose() -> None:
    chosen = st.session_state[OWN]
    if chosen != OWN:
        st.session_state["range"] = chosen
        _leave_zoom()


def _goes_with(other: MetricInfo, metric: MetricInfo, by: str) -> bool:
    """On one axis, in one table: the same unit, the same grouping, and percentiles only beside percentiles."""
    both = frames.is_percentile(other.name) == frames.is_percentile(metric.name)
    return other.name != metric.name and other.unit == metric.unit and by in other.groups and both


def _leave_zoom() -> None:
    for name in ("from", "to"):
        if name in st.query_params:
            del st.query_params[name]
    st.session_state["zoom_drawn"] = st.session_state.get("zoom_drawn", 0) + 1


def _range(now_unix_s: float) -> tuple[float, float]:
    """A dragged window (in the URL as from and to, Unix seconds) before the chosen range up to now."""
    if window := day.past():
        return window
    return now_unix_s - RANGES[st.session_state.get("range") or "1h"], now_unix_s


def _read(hub: Hub, metric: str, since: float, until: float, step_s: int, by: str) -> SeriesResult:
    key = ("explore", metric, by, int(since), int(until), step_s)
    return hub.cached(key, 60.0, lambda plane: plane.series(metric, since, until, step_s, by))


def _read_all(
    hub: Hub, metric: MetricInfo, also: str, since: float, until: float, step_s: int, by: str
) -> SeriesResult:
    """The metric's lines; with another one beside it the lines of both, each named after its metric."""
    result = _read(hub, metric.name, since, until, step_s, by)
    return frames.together(result, _read(hub, also, since, until, step_s, by)) if also else result


def _chart(
    hub: Hub, metric: MetricInfo, result: SeriesResult, past: SeriesResult | None, found: Happened, shift_s: float
) -> None:
    window = _window_words(result)
    st.html(
        f'<div class="pl pl-row pl-between"><span><b>{cards.text(words.sentence(metric.help or metric.name))}</b> '
        f"{cards.tag(result.provenance, left=True)}</span>"
        f'<span class="pl-muted">{cards.text(window)}, in steps of {format.step(result.step_s)}</span></div>'
    )
    shown, left_out = frames.busiest(result, MAX_LINES)
    named = [(each.label or "fleet", each.points) for each in shown]
    if not any(point.value is not None for _, points in named for point in points):
        st.html(
            cards.empty(
                "No data in this window", "Nothing was recorded, or it is past its retention. A gap is not zero."
            )
        )
        return
    labels = {each.label for each in shown}
    earlier = [(each.label or "fleet", each.points) for each in past.series if each.label in labels] if past else []
    interval = draw.brushable(
        _spec(result, tuple(name for name, _ in named), compared=past is not None),
        {
            "live": frames.lines(named),
            **({"past": frames.lines(earlier, shift_s)} if past else {}),
            "span": frames.axis_span(result, [*named, *earlier]),
            **found.marks(),
        },
        key=f"explore_{metric.name}_{result.by}_{past is not None}_{st.session_state.get('zoom_drawn', 0)}",
        param="zoom",
        alt=_alt(metric, result),
    )
    if interval is not None:
        _zoom(interval)
    st.caption(" ".join(_notes(result, past, left_out)))


def _spec(result: SeriesResult, names: tuple[str, ...], *, compared: bool) -> charts.Spec:
    number_format, title = format.axis_format(result.unit)
    return charts.explore(
        names=names,
        number_format=number_format,
        title=title,
        compared=compared,
        height=360,
        time_format=format.time_axis(result.until_unix_s - result.since_unix_s),
    )


def _window_words(result: SeriesResult) -> str:
    begin, end = (format.moment(each, session.tz()) for each in (result.since_unix_s, result.until_unix_s))
    return f"{begin} to {end}, {session.tz_name()}"


def _alt(metric: MetricInfo, result: SeriesResult) -> str:
    return f"{metric.name} by {result.by}, {_window_words(result)}. Drag to zoom into a window."


def _zoom(interval: tuple[float, float]) -> None:
    st.query_params["from"], st.query_params["to"] = (f"{bound:.0f}" for bound in day.widened(interval))
    st.session_state["zoom_drawn"] = st.session_state.get("zoom_drawn", 0) + 1
    st.rerun()


def _notes(result: SeriesResult, past: SeriesResult | None, left_out: int) -> list[str]:
    notes = [words.sentence(result.note) + "."] if result.note else []
    if left_out:
        notes.append(f"{left_out} more groups are in the table and the download.")
    if any(point.partial and point.value is not None for each in result.series for point in each.points):
        notes.append("Hollow: a bucket of which not all is known, or over.")
    if past is not None:
        notes.append("Dashed: the earlier window, moved onto this one.")
    return [*notes, "Drag on the chart to zoom."]


def _file(hub: Hub, token: str, metrics: list[str], result: SeriesResult, kind: Literal["csv", "parquet"]) -> bytes:
    """The same buckets as a file, made by the plane when it is asked for: outside the run, where no session is."""
    return hub.client(token).export(
        metrics, result.since_unix_s, result.until_unix_s, result.step_s, result.by, format=kind
    )


def _csv(hub: Hub, token: str, metrics: list[str], result: SeriesResult, past: SeriesResult | None) -> bytes:
    """Both windows in one file; its times tell them apart."""
    chosen = _file(hub, token, metrics, result, "csv")
    return chosen if past is None else chosen + _file(hub, token, metrics, past, "csv").partition(b"\n")[2]


def _numbers(hub: Hub, metric: MetricInfo, also: str, result: SeriesResult, past: SeriesResult | None) -> None:
    _files(hub, metric, also, result, past)
    if past is not None and (told := _differences(result, past)):
        st.caption(" ".join(told))
    before = {name: whole for name, _, whole, _, _ in tables.summary(past)} if past else {}
    rows = []
    for name, *values in tables.summary(result):
        texts = [format.quantity(value, result.unit) for value in values]
        if past:
            texts.append(format.quantity(before.get(name), result.unit))
        rows.append((cards.Cell(name), *(cards.Cell(text, num=True) for text in texts)))
    whole = "Of the window" if frames.is_percentile(metric.name) else "Mean"
    group = GROUP_WORDS.get(result.by, result.by)
    if rows:
        head = (group, "Last", whole, "Least", "Largest", *((f"{whole}, earlier",) if past else ()))
        st.html(cards.table(head, rows, f"{metric.name} by {result.by}"))


def _differences(result: SeriesResult, past: SeriesResult) -> list[str]:
    """In words, of the groups that are drawn: means where both windows are known; a percentile of the windows as a
    whole, from merged histograms."""
    when = f"{format.duration(result.since_unix_s - past.since_unix_s)} earlier"
    wholes = {each.label: each.whole for each in past.series}
    told = [] if frames.is_percentile(result.metric) else ["Where both windows are known:"]
    for each in frames.busiest(result, NUM_TOLD)[0]:
        if frames.is_percentile(result.metric):
            both = each.whole, wholes.get(each.label)
        else:
            shift_s, then = result.since_unix_s - past.since_unix_s, frames.points_of(past, each.label)
            both = frames.means_together(each.points, then, shift_s, past.step_s)
        told.append(words.difference(words.sentence(each.label or "fleet"), *both, when, result.unit))
    return told


def _files(hub: Hub, metric: MetricInfo, also: str, result: SeriesResult, past: SeriesResult | None) -> None:
    """What can be taken away: data, picture, link."""
    metrics = [metric.name, also] if also else [metric.name]
    name, token = f"phaseline-{metric.name}-{result.by}-{result.since_unix_s:.0f}", session.token(hub)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.download_button(
            "Download CSV",
            data=lambda: _csv(hub, token, metrics, result, past),
            file_name=f"{name}.csv",
            mime="text/csv",
            on_click="ignore",
        )
        st.download_button(
            "Download Parquet",
            data=lambda: _file(hub, token, metrics, result, "parquet"),
            file_name=f"{name}.parquet",
            mime="application/vnd.apache.parquet",
            on_click="ignore",
        )
        with st.container(width="content"):
            push.svg_button(_alt(metric, result), f"{name}.svg")
        st.button(
            "Fix this window in the link", on_click=_fix, args=(result,), help="Writes from and to into the address."
        )
        if "from" in st.query_params:
            st.button("Back to the range", on_click=_leave_zoom)


def _fix(result: SeriesResult) -> None:
    st.query_params["from"] = f"{result.since_unix_s:.0f}"
    st.query_params["to"] = f"{result.until_unix_s:.0f}"
