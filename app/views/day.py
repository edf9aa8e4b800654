"""The day strip: the last 24 h of the two lines, to brush. What is brushed is the window of the charts above."""

from __future__ import annotations

import streamlit as st

from app import cards, charts, draw, frames, lines
from app.lines import Basis
from app.source import Hub
from control.errors import ControlError
from control.types import SeriesResult

DAY_S = 86_400
DAY_STEP_S = 60
LEAST_STRIP_S = 1800.0


def _read_day(hub: Hub, metric: str, until: float) -> SeriesResult:
    key = ("day", metric, int(until // 60))
    return hub.cached(key, 90.0, lambda plane: plane.series(metric, until - DAY_S, until, DAY_STEP_S))


def strip(hub: Hub, basis: Basis) -> None:
    """The last 24 h, to brush. A selection becomes the window of the charts above and stops their refresh."""
    snapshot = hub.look().snapshot
    if snapshot is None:
        return
    drawn = lines.utilization(basis, "phase", blended=False)
    until = snapshot.at_unix_s
    try:
        read = {line.metric: _read_day(hub, line.metric, until) for line in drawn}
    except ControlError as error:
        st.caption(f"The last 24 h could not be read: {error}")
        return
    named = [(line.name, frames.points_of(read[line.metric])) for line in drawn]
    since = frames.begin(named, until - DAY_S, until, LEAST_STRIP_S)
    data = {
        "live": frames.lines(frames.since(named, since)),
        "span": frames.span(since, until, frames.top_of([frames.largest(named)])),
    }
    looks = tuple((line.name, line.color, line.dash) for line in drawn)
    recorded = "Last 24 h" if since == until - DAY_S else "All that is recorded of the last 24 h"
    st.html(cards.legend([], f"{recorded}: drag to look at a window of it"))
    interval = draw.brushable(
        charts.day_strip(84, looks),
        data,
        key=f"day_{st.session_state.get('day_drawn', 0)}",
        param="brush",
        alt="The same two lines over the last 24 hours, as one-minute means. Drag to choose a window.",
    )
    if interval is not None and interval != st.session_state.get("past"):
        st.session_state["past"] = interval
        st.rerun()


def past() -> tuple[float, float] | None:
    """The window that was brushed; None is live."""
    chosen: tuple[float, float] | None = st.session_state.get("past")
    return chosen


def back_to_live() -> None:
    st.session_state.pop("past", None)
    st.session_state["day_drawn"] = st.session_state.get("day_drawn", 0) + 1  # a new strip has no brush
