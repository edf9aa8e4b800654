"""The two lines; under the same time axis workers per role and what routing was set to: live, or a past window.

Decided here: what is read for a window and put under one axis. Which lines there are is `app.lines`'.
"""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from app import (
    alerts,
    breaches,
    cards,
    charts,
    draw,
    figures,
    format,
    frames,
    lines,
    marks,
    routing_line,
    session,
    theme,
    zones,
)
from app.lines import Basis, LineSpec
from app.source import Hub
from control.errors import ControlError
from control.types import Alert, FleetEvent, FleetSnapshot, SeriesResult

WINDOWS: dict[str, tuple[int, int]] = {"5m": (300, 1), "15m": (900, 1), "60m": (3600, 10)}
CARRY_S = 15.0  # workers per role: a tick may come late, a worker does not come and go with it
LEAST_WINDOW_S = 120.0
ROUTING_TOP = 1.5  # above the largest share there is a row for what is said of weights
Chosen = tuple[Basis, str, str, bool]


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
        events, burned = hub.events(since, until), alerts.reaching(hub, past)
    except ControlError as error:
        st.html(cards.banner(f"The history did not answer: {error}", "broken", alert=True))
        return
    version = (look.reading if past is None else past, step_s)
    key = ("utilization", basis, by, window, blended)
    named = hub.memo((*key, "named"), version, lambda: lines.named_points(drawn, lambda m, b: read[m, b]))
    if past is None:
        named = [(name, points[:-1]) for name, points in named]  # not every worker has told the youngest bucket yet
        since = frames.begin(named, since, until, LEAST_WINDOW_S)
    data = hub.memo(
        key,
        version,
        lambda: _line_data(hub, named, events, burned, since, until) | _zones(snapshot, drawn, basis, named),
    )
    held = [each.label for each in roles.series if frames.largest([("", each.points)])] if roles else []
    step_data = hub.memo(
        ("roles", window, basis, by, blended), version, lambda: _role_data(hub, snapshot, roles, events, since, until)
    )
    means = {name: frames.mean(points) for name, points in named} if past else None
    title = words_of(basis) + (f", mean of {_range_words(past)}" if past else "")
    shown = {name for name, points in named if points}
    ceilings = snapshot.ceilings
    legend = lines.legend(drawn, snapshot, basis, means, shown, lambda line: zones.both(ceilings, line, basis))
    st.html(cards.legend(legend, title))
    draw.chart(
        _util_spec(drawn),
        data,
        key=f"util_{basis}_{by}_{blended}",
        alt=f"{title}: {', '.join(line.name for line in drawn)}, as a fraction of the device's peak, over time.",
    )
    if blended:
        st.caption(f"Grey, blended: {lines.blended_words(snapshot)}")
    st.html(cards.legend(figures.role_legend(snapshot, held), "Workers per role"))
    draw.chart(charts.role_steps(96), step_data, key="role_steps", alt="Workers per role over the same time, as steps.")
    _routing(hub, snapshot, since, until)


def _routing(hub: Hub, snapshot: FleetSnapshot, since: float, until: float) -> None:
    """What the recorded commands say of routing; nothing at all while no command of the window is known."""
    states = routing_line.held(hub.commands(), snapshot.desired.version)
    points = routing_line.remote_share(states, since, until)
    if not points:
        return
    entry = cards.Line(label="split", value=format.percent(routing_line.last(points)), color=theme.ROUTING, dash="")
    st.html(cards.legend([entry], "Share of eligible requests that is split, by the commands on record"))
    draw.chart(
        charts.routing_steps(76),
        {
            "live": frames.lines([(routing_line.LINE, points)]),
            "span": frames.span(since, until, ROUTING_TOP),
            "weights": routing_line.weight_changes(states, since, until),
        },
        key="routing_steps",
        alt="The share of eligible requests that is split over the same time, as steps, and where weights changed.",
    )


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
    hub: Hub,
    named: Sequence[frames.Labelled],
    events: Sequence[FleetEvent],
    burned: Sequence[Alert],
    since: float,
    until: float,
) -> dict[str, bytes]:
    top = frames.top_of([frames.largest(named)])
    return {
        "live": frames.lines(frames.since(named, since)),
        "span": frames.span(since, until, top),
        "breaches": breaches.dataset(burned, since, until),
        **marks.marks(hub.commands(), events, since, until),
    }


def _zones(
    snapshot: FleetSnapshot, drawn: Sequence[LineSpec], basis: Basis, named: Sequence[frames.Labelled]
) -> dict[str, bytes]:
    return {"zones": zones.dataset(snapshot.ceilings, drawn, basis, frames.top_of([frames.largest(named)]))}


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
        zones=True,
        breaches=True,
    )
