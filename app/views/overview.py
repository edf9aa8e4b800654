"""Overview: "are we fine?" Health in words, five figures, the two lines over workers per role, load beside them.

What refreshes is in small fragments; the toolbar is outside them: a refresh moves nothing that a person reaches for.
"""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from app import cards, charts, draw, figures, format, frames, lines, marks, session, tables, url
from app.lines import Basis, LineSpec
from app.source import Hub
from app.views.shell import health_line
from control.errors import ControlError
from control.types import FleetEvent, FleetSnapshot, SeriesResult

WINDOWS: dict[str, tuple[int, int]] = {"5m": (300, 1), "15m": (900, 1), "60m": (3600, 10)}
WINDOW_WORDS: dict[str, str] = {"5m": "5 min", "15m": "15 min", "60m": "60 min"}
BASES: dict[str, Basis] = {"wall": "wall", "in-phase": "in_phase"}
DAY_S = 86_400
DAY_STEP_S = 60
CARRY_S = 15.0  # workers per role: a tick may come late, a worker does not come and go with it
NUM_SHOWN = 8
LATEST_S = 3600.0
LEAST_WINDOW_S = 120.0
LEAST_STRIP_S = 1800.0


def page(hub: Hub, snapshot: FleetSnapshot) -> None:
    """The page from top to bottom."""
    if not snapshot.workers:
        st.fragment(health_line, run_every=1.0)(hub)
        st.html(cards.empty("No workers yet", snapshot.health_text or "The fleet has not started a worker."))
        return
    st.fragment(_figures, run_every=1.0)(hub)
    chosen = _toolbar()
    past: tuple[float, float] | None = st.session_state.get("past")
    left, right = st.columns([4, 1], gap="small")
    with left:
        st.fragment(utilization, run_every=None if past else 1.0)(hub, chosen, past)
        st.fragment(_day, run_every=60.0)(hub, chosen[0])
    with right:
        st.fragment(_loads, run_every=1.0)(hub)
    st.fragment(_latest, run_every=1.0)(hub)


Chosen = tuple[Basis, str, str, bool]


def _toolbar() -> Chosen:
    """Wall or in-phase, by phase or role, window, blended: all in the URL."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        basis = url.segmented(
            "Utilization",
            {"wall": "Wall", "in-phase": "In-phase"},
            name="share",
            default="wall",
            help="Work done / peak. Wall: over all the time. In-phase: over the time that phase was running.",
        )
        by = url.segmented(
            "Lines",
            {"phase": "By phase", "role": "By role"},
            name="lines",
            default="phase",
            help="By phase, wherever the work ran; or by the role of the workers that did it.",
        )
        window = url.segmented("Live window", WINDOW_WORDS, name="window", default="15m")
        blended = url.toggle(
            "Blended line",
            name="blended",
            help="What other dashboards show: the share of time in which anything ran, whatever it was.",
        )
        if st.session_state.get("past"):
            st.button("Back to live", type="primary", on_click=_back_to_live)
    return BASES[basis], by, window, blended


def _back_to_live() -> None:
    st.session_state.pop("past", None)
    st.session_state["day_drawn"] = st.session_state.get("day_drawn", 0) + 1  # a new strip has no brush


# --- figures ------------------------------------------------------------


def _figures(hub: Hub) -> None:
    look = hub.look()
    if look.snapshot is None:
        return
    health_line(hub)
    snapshot = look.snapshot
    read = {metric: hub.live(metric, "fleet", 900, 10).result for metric in figures.COURSES}
    st.html(hub.memo("figures", look.reading, lambda: cards.figures(figures.figures(snapshot, read))))


# --- the two lines ------------------------------------------------------------


def utilization(hub: Hub, chosen: Chosen, past: tuple[float, float] | None) -> None:
    """The lines and, under the same time axis, workers per role: live, or a brushed window that stands still."""
    look = hub.look()
    snapshot = look.snapshot
    if snapshot is None:
        return
    basis, by, window, blended = chosen
    drawn = lines.utilization(basis, by, blended=blended)
    window_s, step_s = WINDOWS[window]
    since, until = past or (snapshot.at_unix_s - window_s, snapshot.at_unix_s)
    try:
        read = {(m, b): _read(hub, m, b, past, window_s, step_s) for m, b in {(line.metric, line.by) for line in drawn}}
        roles = _read(hub, "num_workers", "role", past, window_s, step_s)
        events = hub.events(since, until)
    except ControlError as error:
        st.html(cards.banner(f"The history did not answer: {error}", "broken", alert=True))
        return
    version = (look.reading if past is None else past, step_s)
    key = ("utilization", basis, by, window, blended)
    named = hub.memo((*key, "named"), version, lambda: lines.named_points(drawn, lambda m, b: read[m, b]))
    if past is None:
        named = [(name, points[:-1]) for name, points in named]  # not every worker has told the youngest bucket yet
        since = frames.begin(named, since, until, LEAST_WINDOW_S)
    data = hub.memo(key, version, lambda: _line_data(hub, named, events, since, until))
    held = [each.label for each in roles.series if frames.largest([("", each.points)])] if roles else []
    step_data = hub.memo(
        ("roles", window, basis, by, blended), version, lambda: _role_data(hub, snapshot, roles, events, since, until)
    )
    means = {name: frames.mean(points) for name, points in named} if past else None
    title = words_of(basis) + (f", mean of {_range_words(past)}" if past else "")
    shown = {name for name, points in named if points}
    st.html(cards.legend(lines.legend(drawn, snapshot, basis, means, shown), title))
    draw.chart(
        _util_spec(drawn),
        data,
        key=f"util_{basis}_{by}_{blended}",
        alt=f"{title}: {', '.join(line.name for line in drawn)}, as a fraction of the device's peak, over time.",
    )
    st.html(cards.legend(figures.role_legend(snapshot, held), "Workers per role"))
    draw.chart(charts.role_steps(96), step_data, key="role_steps", alt="Workers per role over the same time, as steps.")


def words_of(basis: Basis) -> str:
    return {"wall": "Wall utilization", "in_phase": "In-phase utilization"}[basis]


def _range_words(past: tuple[float, float] | None) -> str:
    tz = session.tz()
    return "" if past is None else f"{format.clock(past[0], tz)[:5]} to {format.clock(past[1], tz)[:5]}"


def _read(
    hub: Hub, metric: str, by: str, past: tuple[float, float] | None, window_s: int, step_s: int
) -> SeriesResult | None:
    if past is None:
        live = hub.live(metric, by, window_s, step_s)
        return live.result
    since, until = past
    step = frames.step_for(until - since)
    key = ("series", metric, by, round(since), round(until), step)
    return hub.cached(key, 60.0, lambda plane: plane.series(metric, since, until, step, by))


def _line_data(
    hub: Hub, named: Sequence[frames.Labelled], events: Sequence[FleetEvent], since: float, until: float
) -> dict[str, bytes]:
    top = frames.top_of([frames.largest(named)])
    return {
        "live": frames.lines(frames.since(named, since)),
        "span": frames.span(since, until, top),
        **marks.marks(hub.commands(), events, since, until),
    }


def _role_data(
    hub: Hub,
    snapshot: FleetSnapshot,
    roles: SeriesResult | None,
    events: Sequence[FleetEvent],
    since: float,
    until: float,
) -> dict[str, bytes]:
    held = [each for each in roles.series if frames.largest([("", each.points)])] if roles else []
    named = [(each.label, frames.carried(each.points, CARRY_S)) for each in held]
    return {
        "live": frames.lines(frames.since(named, since)),
        "span": frames.span(since, until, max(1.0, frames.largest(named) or 1.0, float(len(snapshot.workers)))),
        **marks.marks(hub.commands(), events, since, until),
    }


def _util_spec(drawn: Sequence[LineSpec]) -> charts.Spec:
    return charts.lines(
        names=tuple(line.name for line in drawn),
        colors=tuple(line.color for line in drawn),
        dashes=tuple(line.dash for line in drawn),
        number_format=".0%",
        read_format=".1%",
        title=None,
        height=236,
    )


def _read_day(hub: Hub, metric: str, until: float) -> SeriesResult:
    key = ("day", metric, int(until // 60))
    return hub.cached(key, 90.0, lambda plane: plane.series(metric, until - DAY_S, until, DAY_STEP_S))


def _day(hub: Hub, basis: Basis) -> None:
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


# --- load beside them ------------------------------------------------------------


def _loads(hub: Hub) -> None:
    look = hub.look()
    snapshot = look.snapshot
    if snapshot is not None:
        st.html(
            cards.legend([], "Load and headroom")
            + hub.memo("loads", look.reading, lambda: cards.loads(figures.loads(snapshot)))
        )


# --- what happened ------------------------------------------------------------


def _latest(hub: Hub) -> None:
    """Commands and events in one list, the newest first."""
    snapshot = hub.look().snapshot
    if snapshot is None:
        return
    try:
        events = hub.events(snapshot.at_unix_s - LATEST_S, snapshot.at_unix_s)
    except ControlError as error:
        st.caption(f"What happened could not be read: {error}")
        events = []
    st.html(cards.legend([], "Latest commands and events"))
    rows = tables.latest_rows(hub.commands(), events, NUM_SHOWN, session.tz())
    if not rows:
        st.html(
            '<div class="pl pl-muted">Nothing yet. What somebody changes, and what happens to workers and their '
            "requests, appears here and on the lines.</div>"
        )
        return
    st.html(cards.table(("At", "What", "State", "Who", "Why", "Result"), rows, "Latest commands and events"))
