"""The day strip: the last 24 h of the two lines, to brush, beside the same hours of another day.

What is brushed is the window of the charts above, and in the address (`from`, `to`), so that a link restores it.
"""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from app import alerts, breaches, cards, charts, draw, format, frames, lines, url
from app.lines import Basis
from app.source import Hub
from control.errors import ControlError
from control.types import SeriesPoint, SeriesResult

DAY_S = 86_400
DAY_STEP_S = 60
LEAST_STRIP_S = 1800.0
COMPARED: dict[str, tuple[str, int]] = {"none": ("Nothing", 0), "1d": ("Yesterday", 1), "7d": ("A week ago", 7)}
FAINT = "80"  # alpha of a line of another day


def _read_day(hub: Hub, metric: str, until: float) -> SeriesResult:
    key = ("day", metric, int(until // 60))
    return hub.cached(key, 90.0, lambda plane: plane.series(metric, until - DAY_S, until, DAY_STEP_S))


def compared() -> str:
    """Which other day stands beside the last 24 h; in the address."""
    words = {name: text for name, (text, _) in COMPARED.items()}
    return url.segmented("24 h beside", words, name="beside", default="none")


def strip(hub: Hub, basis: Basis, beside: str = "none") -> None:
    """The last 24 h, to brush. A selection becomes the window of the charts above and stops their refresh."""
    snapshot = hub.look().snapshot
    if snapshot is None:
        return
    drawn = lines.utilization(basis, "phase", blended=False)
    until = snapshot.at_unix_s
    words, days = COMPARED.get(beside, COMPARED["none"])
    try:
        read = {line.metric: _read_day(hub, line.metric, until) for line in drawn}
        then = {line.metric: _read_day(hub, line.metric, until - days * DAY_S) for line in drawn} if days else {}
    except ControlError as error:
        st.caption(f"The last 24 h could not be read: {error}")
        return
    named = [(line.name, frames.points_of(read[line.metric])) for line in drawn]
    other = f", {words.lower()}"
    earlier = [(line.name + other, _moved(then[line.metric], days * DAY_S)) for line in drawn if then]
    means = [(line.name, _mean(read[line.metric]), _mean(then[line.metric])) for line in drawn if then]
    named += earlier
    since = frames.begin(named, until - DAY_S, until, LEAST_STRIP_S)
    data = {
        "live": frames.lines(frames.since(named, since)),
        "span": frames.span(since, until, frames.top_of([frames.largest(named)])),
        "breaches": breaches.dataset(alerts.of_last_day(hub), since, until),
    }
    looks = tuple((line.name, line.color, line.dash) for line in drawn)
    looks += tuple((line.name + other, line.color + FAINT, line.dash) for line in drawn if then)
    recorded = "Last 24 h" if since == until - DAY_S else "All that is recorded of the last 24 h"
    st.html(cards.legend([], f"{recorded}: drag to look at a window of it"))
    interval = draw.brushable(
        charts.day_strip(84, looks),
        data,
        key=f"day_{st.session_state.get('day_drawn', 0)}",
        param="brush",
        alt="The same two lines over the last 24 hours, as one-minute means. Drag to choose a window.",
    )
    if means:
        st.caption(f"Faint: {words.lower()}, the same hours. " + " ".join(difference(*each) for each in means))
    if interval is not None and interval != st.session_state.get("past"):
        st.session_state["past"] = interval
        st.query_params["from"], st.query_params["to"] = (f"{bound:.0f}" for bound in interval)
        st.rerun()


def difference(name: str, now: float | None, then: float | None) -> str:
    """ "Prefill compute 62.0%, then 58.0%." """
    if now is None or then is None:
        return f"{name}: nothing to compare."
    return f"{name} {format.percent(now)} on the mean, then {format.percent(then)}."


def _moved(result: SeriesResult, by_s: float) -> tuple[SeriesPoint, ...]:
    """The points of an earlier day, moved onto this one."""
    return tuple(replace(point, t_unix_s=point.t_unix_s + by_s) for point in frames.points_of(result))


def _mean(result: SeriesResult) -> float | None:
    known = [point.value for point in frames.points_of(result) if point.value is not None]
    return sum(known) / len(known) if known else None


def past() -> tuple[float, float] | None:
    """The window that was brushed, or that the address names; None is live."""
    chosen: tuple[float, float] | None = st.session_state.get("past")
    if chosen is None and {"from", "to"} <= st.query_params.keys():
        try:
            since, until = float(st.query_params["from"]), float(st.query_params["to"])
        except ValueError:
            return None
        chosen = (since, until) if 0 < since < until else None
    return chosen


def back_to_live() -> None:
    st.session_state.pop("past", None)
    for name in ("from", "to"):
        if name in st.query_params:
            del st.query_params[name]
    st.session_state["day_drawn"] = st.session_state.get("day_drawn", 0) + 1  # a new strip has no brush
