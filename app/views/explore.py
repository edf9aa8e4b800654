"""Explore: any metric, any range in the retention, any grouping, against an earlier window; the URL restores the view.

A view is fixed once it is drawn: "Now" in the range means the moment of drawing, and a drag narrows it.
"""

from __future__ import annotations

import streamlit as st

from app import cards, charts, draw, format, frames, marks, session, tables, url, words
from app.source import Hub
from control.errors import ControlError
from control.types import FleetEvent, FleetSnapshot, MetricInfo, SeriesResult

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


def page(hub: Hub, snapshot: FleetSnapshot) -> None:
    """Controls, chart, table, download."""
    try:
        catalogue = hub.cached("metrics", 300.0, lambda plane: plane.metrics())
    except ControlError as error:
        st.html(cards.banner(f"The metric catalogue did not come: {error}", "broken", alert=True))
        return
    metric, by, step, shift = _controls(catalogue)
    since, until = _range(snapshot.at_unix_s)
    step_s = frames.step_for(until - since) if step == "auto" else int(step)
    shift_s = (until - since) if shift is None else float(shift)
    try:
        result = _read(hub, metric.name, since, until, step_s, by)
        past = _read(hub, metric.name, since - shift_s, until - shift_s, step_s, by) if shift_s else None
        events = hub.events(since, until)
    except ControlError as error:
        st.html(cards.banner(str(error), "broken", alert=True))
        return
    _chart(hub, metric, result, past, events, shift_s)
    _numbers(hub, metric, result, past)


def _controls(catalogue: list[MetricInfo]) -> tuple[MetricInfo, str, str, int | None]:
    """Metric, grouping, step, comparison: each in the URL under its own name."""
    known = {each.name: each for each in catalogue}
    first, second, third, fourth = st.columns([3, 1.4, 1.1, 1.8], vertical_alignment="bottom")
    default = "decode_bandwidth_wall" if "decode_bandwidth_wall" in known else next(iter(known))
    metric = known[url.select("Metric", list(known), name="metric", default=default, place=first)]
    groups = {each: GROUP_WORDS.get(each, each) for each in metric.groups}
    by = url.select("Group by", groups, name="by", default=metric.groups[0], place=second)
    step = url.select("Step", STEP_WORDS, name="step", default="auto", place=third)
    versus = url.select("Compare with", COMPARED_WORDS, name="versus", default="none", place=fourth)
    url.segmented("Range", RANGE_WORDS, name="range", default="1h", on_change=_leave_zoom)
    return metric, by, step, COMPARED[versus]


def _leave_zoom() -> None:
    for name in ("from", "to"):
        if name in st.query_params:
            del st.query_params[name]
    st.session_state["zoom_drawn"] = st.session_state.get("zoom_drawn", 0) + 1


def _range(now_unix_s: float) -> tuple[float, float]:
    """A dragged window (in the URL as from and to, Unix seconds) before the chosen range up to now."""
    try:
        since, until = float(st.query_params["from"]), float(st.query_params["to"])
        if 0 < since < until:
            return since, until
    except (KeyError, ValueError):
        pass
    return now_unix_s - RANGES[st.session_state.get("range") or "1h"], now_unix_s


def _read(hub: Hub, metric: str, since: float, until: float, step_s: int, by: str) -> SeriesResult:
    key = ("explore", metric, by, int(since), int(until), step_s)
    return hub.cached(key, 60.0, lambda plane: plane.series(metric, since, until, step_s, by))


def _chart(
    hub: Hub,
    metric: MetricInfo,
    result: SeriesResult,
    past: SeriesResult | None,
    events: list[FleetEvent],
    shift_s: float,
) -> None:
    tz = session.tz()
    shown, left_out = frames.busiest(result, MAX_LINES)
    window = (
        f"{format.moment(result.since_unix_s, tz)} to {format.moment(result.until_unix_s, tz)}, {session.tz_name()}"
    )
    st.html(
        f'<div class="pl pl-row pl-between"><span><b>{cards.text(words.sentence(metric.help or metric.name))}</b> '
        f"{cards.tag(result.provenance, left=True)}</span>"
        f'<span class="pl-muted">{cards.text(window)}, in steps of {format.step(result.step_s)}</span></div>'
    )
    named = [(each.label or "fleet", each.points) for each in shown]
    if not any(point.value is not None for _, points in named for point in points):
        st.html(
            cards.empty(
                "No data in this window", "Nothing was recorded, or it is past its retention. A gap is not zero."
            )
        )
        return
    earlier = (
        [(each.label or "fleet", each.points) for each in past.series if each.label in {s.label for s in shown}]
        if past
        else []
    )
    number_format, title = format.axis_format(result.unit)
    names = tuple(name for name, _ in named)
    data = {
        "live": frames.lines(named),
        "past": frames.lines(earlier, shift_s),
        "span": frames.axis_span(result, [*named, *earlier]),
        **marks.marks(hub.commands(), events, result.since_unix_s, result.until_unix_s),
    }
    if past is None:
        del data["past"]
    interval = draw.brushable(
        charts.explore(
            names=names,
            number_format=number_format,
            title=title,
            compared=past is not None,
            height=360,
            time_format=format.time_axis(result.until_unix_s - result.since_unix_s),
        ),
        data,
        key=f"explore_{metric.name}_{result.by}_{past is not None}_{st.session_state.get('zoom_drawn', 0)}",
        param="zoom",
        alt=f"{metric.name} by {result.by}, {window}. Drag to zoom into a window.",
    )
    if interval is not None:
        st.query_params["from"], st.query_params["to"] = (f"{bound:.0f}" for bound in interval)
        st.session_state["zoom_drawn"] = st.session_state.get("zoom_drawn", 0) + 1
        st.rerun()
    notes = [words.sentence(result.note) + "."] if result.note else []
    if left_out:
        notes.append(f"{left_out} more groups are in the table and the download.")
    if past is not None:
        notes.append("Dashed: the earlier window, moved onto this one.")
    notes.append("Drag on the chart to zoom.")
    st.caption(" ".join(notes))


def _parquet(hub: Hub, token: str, result: SeriesResult) -> bytes:
    """The same buckets as a file, made by the plane when it is asked for: outside the run, where no session is."""
    return hub.client(token).export(
        [result.metric], result.since_unix_s, result.until_unix_s, result.step_s, result.by, format="parquet"
    )


def _numbers(hub: Hub, metric: MetricInfo, result: SeriesResult, past: SeriesResult | None) -> None:
    token = session.token(hub)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.download_button(
            "Download CSV",
            data=lambda: tables.csv_text([("chosen", result), *([("earlier", past)] if past else [])]),
            file_name=f"phaseline-{metric.name}-{result.by}-{result.since_unix_s:.0f}.csv",
            mime="text/csv",
            on_click="ignore",
        )
        st.download_button(
            "Download Parquet",
            data=lambda: _parquet(hub, token, result),
            file_name=f"phaseline-{metric.name}-{result.by}-{result.since_unix_s:.0f}.parquet",
            mime="application/vnd.apache.parquet",
            on_click="ignore",
        )
        st.button(
            "Fix this window in the link", on_click=_fix, args=(result,), help="Writes from and to into the address."
        )
        if "from" in st.query_params:
            st.button("Back to the range", on_click=_leave_zoom)
    earlier = {name: mean for name, _, mean, _, _ in tables.summary(past)} if past else {}
    rows = []
    for name, last, mean, least, largest in tables.summary(result):
        texts = [format.quantity(value, result.unit) for value in (last, mean, least, largest)]
        if past:
            texts.append(format.quantity(earlier.get(name), result.unit))
        rows.append((cards.Cell(name), *(cards.Cell(text, num=True) for text in texts)))
    head = (
        GROUP_WORDS.get(result.by, result.by),
        "Last",
        "Mean",
        "Least",
        "Largest",
        *(("Mean earlier",) if past else ()),
    )
    if rows:
        st.html(cards.table(head, rows, f"{metric.name} by {result.by}"))


def _fix(result: SeriesResult) -> None:
    st.query_params["from"] = f"{result.since_unix_s:.0f}"
    st.query_params["to"] = f"{result.until_unix_s:.0f}"
