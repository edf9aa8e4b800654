"""The day strip: the last 24 h of the two lines, to brush, beside the same hours of another day.

What is brushed is the window of the charts above, and in the address (`from`, `to`), so that a link restores it.
"""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from app import cards, charts, draw, format, frames, happened, lines, session
from app.happened import Happened
from app.lines import Basis, LineSpec
from app.source import Hub
from app.views import beside
from app.views.beside import DAY_S, Other
from control.errors import ControlError
from control.types.series import SeriesResult

DAY_STEP_S = 60
LEAST_STRIP_S = 1800.0
LEAST_PAST_S = 20.0
LATEST_S = 1e11  # the plane's own bound on a time
FAINT = "80"  # alpha of a line of another day


def _read_day(hub: Hub, metric: str, until: float) -> SeriesResult:
    key = ("day", metric, int(until // 60))
    return hub.cached(key, 90.0, lambda plane: plane.series(metric, until - DAY_S, until, DAY_STEP_S))


def strip(hub: Hub, basis: Basis, other: Other) -> None:
    """The last 24 h, to brush. A selection becomes the window of the charts above and stops their refresh."""
    snapshot = hub.look().snapshot
    if snapshot is None:
        return
    drawn = lines.utilization(basis, "phase", blended=False)
    until = snapshot.at_unix_s
    try:
        read = {line.metric: _read_day(hub, line.metric, until) for line in drawn}
        then = {line.metric: _read_day(hub, line.metric, until - other.shift_s) for line in drawn if other.shift_s}
        found = happened.read(hub, until - DAY_S, until)
    except ControlError as error:
        st.caption(f"The last 24 h could not be read: {error}")
        return
    named = [(line.name, frames.points_of(read[line.metric])) for line in drawn]
    window = until - DAY_S, until
    earlier = [(_other(line, other), beside.moved(then[line.metric], None, other, *window)) for line in drawn if then]
    since = frames.begin([*named, *earlier], until - DAY_S, until, LEAST_STRIP_S)
    recorded = "Last 24 h" if since == until - DAY_S else "All that is recorded of the last 24 h"
    st.html(cards.legend([], f"{recorded}, in {session.tz_name()}: drag to look at a window of it"))
    _draw(drawn, [*named, *earlier], found, since, other if then else None)
    if then:
        both = zip(drawn, named, strict=True)
        told = (beside.difference(name, points, then[line.metric], None, other) for line, (name, points) in both)
        st.caption(f"Faint: {other.when}, the same hours. Where both are known: {' '.join(told)}")


def _draw(
    drawn: Sequence[LineSpec], named: Sequence[frames.Labelled], found: Happened, since: float, other: Other | None
) -> None:
    looks = tuple((line.name, line.color, line.dash) for line in drawn)
    looks += tuple((_other(line, other), line.color + FAINT, line.dash) for line in drawn if other)
    data = {
        "live": frames.lines(frames.since(named, since)),
        "span": frames.span(since, found.until_unix_s, frames.top_of([frames.largest(named)])),
        "window": frames.window(_inside(past(), since, found.until_unix_s)),
        **found.marks(since),
    }
    interval = draw.brushable(
        charts.day_strip(84, looks),
        data,
        key=f"day_{st.session_state.get('day_drawn', 0)}",
        param="brush",
        alt="The same two lines over the last 24 hours, as one-minute means. Drag to choose a window.",
    )
    if interval is not None and interval != st.session_state.get("brushed"):
        st.session_state["brushed"] = interval
        st.query_params["from"], st.query_params["to"] = (f"{bound:.0f}" for bound in widened(interval))
        st.rerun()


def _other(line: LineSpec, other: Other) -> str:
    return f"{line.name}, {other.when}"


def widened(interval: tuple[float, float]) -> tuple[float, float]:
    """At least LEAST_PAST_S around the middle of what was brushed: a click's tremble is no window."""
    middle, half = (interval[0] + interval[1]) / 2, max(interval[1] - interval[0], LEAST_PAST_S) / 2
    return middle - half, middle + half


def _inside(chosen: tuple[float, float] | None, since: float, until: float) -> tuple[float, float] | None:
    """As far as the strip reaches: a rectangle beyond it would stretch its axis."""
    if chosen is None or chosen[1] <= since or chosen[0] >= until:
        return None
    return max(chosen[0], since), min(chosen[1], until)


def past() -> tuple[float, float] | None:
    """The window that the address names, as a brush or a zoom wrote it there; None is live."""
    try:
        since, until = float(st.query_params["from"]), float(st.query_params["to"])
    except (KeyError, ValueError):
        return None
    return (since, until) if 0 < since < until < LATEST_S else None


def zoom(interval: tuple[float, float]) -> None:
    """Look closer, down to the seconds."""
    st.query_params["from"], st.query_params["to"] = (f"{bound:.0f}" for bound in widened(interval))
    st.session_state["day_drawn"] = st.session_state.get("day_drawn", 0) + 1
    st.rerun()


def listed(hub: Hub, chosen: tuple[float, float]) -> None:
    """What happened in the chosen window."""
    tz = session.tz()
    begin, end = (format.moment(each, tz) for each in chosen)
    st.html(cards.legend([], f"Commands and events from {begin} to {end}, {session.tz_name()}"))
    try:
        st.html(happened.listed(happened.read(hub, *chosen), tz))
    except ControlError as error:
        st.caption(f"What happened could not be read: {error}")


def back_to_live() -> None:
    st.session_state.pop("brushed", None)
    for name in ("from", "to"):
        if name in st.query_params:
            del st.query_params[name]
    st.session_state["day_drawn"] = st.session_state.get("day_drawn", 0) + 1  # a new strip has no brush
