"""The two lines; under the same time axis workers per role and what routing was set to: live, or a past window.

Decided here: what is read for a window and put under one axis. Which lines there are is `app.lines`'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
from control.types import Alert, FleetEvent, FleetSnapshot, Series, SeriesResult

WINDOWS: dict[str, tuple[int, int]] = {"5m": (300, 1), "15m": (900, 1), "60m": (3600, 10)}
CARRY_S = 15.0  # workers per role: a tick may come late, a worker does not come and go with it
LEAST_WINDOW_S = 120.0
PAST_KEPT_S = 60.0  # what was made of a past window; it may reach into the present
ROUTING_TOP = 1.5  # above the largest share there is a row for what is said of weights
Chosen = tuple[Basis, str, str, bool]


@dataclass(frozen=True, slots=True)
class Found:
    """What was read of one window."""

    lines: Mapping[tuple[str, str], SeriesResult | None]  # by metric and grouping
    roles: SeriesResult | None
    events: Sequence[FleetEvent]
    burned: Sequence[Alert]
    since: float
    until: float


@dataclass(frozen=True, slots=True)
class Shown:
    """What this part of the page says and draws, made once per reading for everybody who chose the same."""

    title: str
    legend: str  # markup
    lines: Mapping[str, bytes]  # datasets
    role_legend: str
    roles: Mapping[str, bytes]
    routing_legend: str
    routing: Mapping[str, bytes]  # empty: no command of the window is known


def utilization(hub: Hub, chosen: Chosen, past: tuple[float, float] | None) -> None:
    """The lines and, under the same time axis, workers per role: live, or a brushed window that stands still."""
    look = hub.look()
    snapshot = look.snapshot
    if snapshot is None:
        return
    window_s, _ = WINDOWS[chosen[2]]
    since, until = past or (snapshot.at_unix_s - window_s, snapshot.at_unix_s)
    try:
        found = _find(hub, chosen, past, since, until)
    except ControlError as error:
        st.html(cards.banner(f"The history did not answer: {error}", "broken", alert=True))
        return
    shown = hub.memo(
        ("utilization", *chosen, past, past and session.tz_name()),
        look.reading if past is None else int(hub.now() // PAST_KEPT_S),
        lambda: _shown(hub, snapshot, chosen, past, found),
    )
    _draw(snapshot, chosen, shown)


def _find(hub: Hub, chosen: Chosen, past: tuple[float, float] | None, since: float, until: float) -> Found:
    """May raise ControlError."""
    window_s, step_s = WINDOWS[chosen[2]]
    wanted = {(line.metric, line.by) for line in _lines(chosen)}
    return Found(
        lines={(metric, by): _read(hub, metric, by, past, window_s, step_s) for metric, by in wanted},
        roles=_read(hub, "num_workers", "role", past, window_s, step_s),
        events=hub.events(since, until),
        burned=alerts.reaching(hub, past),
        since=since,
        until=until,
    )


def _lines(chosen: Chosen) -> tuple[LineSpec, ...]:
    basis, by, _, blended = chosen
    return lines.utilization(basis, by, blended=blended)


def _shown(hub: Hub, snapshot: FleetSnapshot, chosen: Chosen, past: tuple[float, float] | None, found: Found) -> Shown:
    basis, ceilings, drawn = chosen[0], snapshot.ceilings, _lines(chosen)
    since, until = found.since, found.until
    named = lines.named_points(drawn, lambda metric, by: found.lines[metric, by])
    if past is None:
        named = [(name, points[:-1]) for name, points in named]  # not every worker has told the youngest bucket yet
        since = frames.begin(named, since, until, LEAST_WINDOW_S)
    means = {name: frames.mean(points) for name, points in named} if past else None
    known = {name for name, points in named if points}
    legend = lines.legend(drawn, snapshot, basis, means, known, lambda line: zones.both(ceilings, line, basis))
    title = words_of(basis) + (f", mean of {_range_words(past)}" if past else "")
    series = found.roles.series if found.roles else ()
    held = [each for each in series if frames.largest([("", each.points)])]
    routing_legend, routing = _routing(hub, snapshot, since, until)
    return Shown(
        title=title,
        legend=cards.legend(legend, title),
        lines=_line_data(hub, named, found.events, found.burned, since, until) | _zones(snapshot, drawn, basis, named),
        role_legend=cards.legend(figures.role_legend(snapshot, [each.label for each in held]), "Workers per role"),
        roles=_role_data(hub, snapshot, held, found.events, since, until),
        routing_legend=routing_legend,
        routing=routing,
    )


def _draw(snapshot: FleetSnapshot, chosen: Chosen, shown: Shown) -> None:
    basis, by, _, blended = chosen
    drawn = _lines(chosen)
    st.html(shown.legend)
    draw.chart(
        _util_spec(drawn),
        shown.lines,
        key=f"util_{basis}_{by}_{blended}",
        alt=f"{shown.title}: {', '.join(line.name for line in drawn)}, as a fraction of the device's peak, over time.",
    )
    if blended:
        st.caption(f"Grey, blended: {lines.blended_words(snapshot)}")
    st.html(shown.role_legend)
    draw.chart(
        charts.role_steps(96), shown.roles, key="role_steps", alt="Workers per role over the same time, as steps."
    )
    if not shown.routing:
        return
    st.html(shown.routing_legend)
    draw.chart(
        charts.routing_steps(76),
        shown.routing,
        key="routing_steps",
        alt="The share of eligible requests that is split over the same time, as steps, and where weights changed.",
    )


def _routing(hub: Hub, snapshot: FleetSnapshot, since: float, until: float) -> tuple[str, Mapping[str, bytes]]:
    """What the recorded commands say of routing: a legend and datasets; nothing while no command is known."""
    states = routing_line.held(hub.commands(), snapshot.desired.version)
    points = routing_line.remote_share(states, since, until)
    if not points:
        return "", {}
    entry = cards.Line(label="split", value=format.percent(routing_line.last(points)), color=theme.ROUTING, dash="")
    legend = cards.legend([entry], "Share of eligible requests that is split, by the commands on record")
    return legend, {
        "live": frames.lines([(routing_line.LINE, points)]),
        "span": frames.span(since, until, ROUTING_TOP),
        "weights": routing_line.weight_changes(states, since, until),
    }


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
    held: Sequence[Series],
    events: Sequence[FleetEvent],
    since: float,
    until: float,
) -> dict[str, bytes]:
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
