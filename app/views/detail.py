"""The two lines; under the same time axis workers per role and what routing was set to: live, or a past window.

Decided here: what is read for a window and put under one axis. Which lines there are is `app.lines`'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import streamlit as st

from app import (
    cards,
    charts,
    draw,
    figures,
    foreign,
    format,
    frames,
    happened,
    limited,
    lines,
    routing_steps,
    session,
    zones,
)
from app.happened import Happened
from app.limited import Limited
from app.lines import Basis, LineSpec
from app.routing_steps import Lane
from app.source import Hub
from app.views import beside, day
from app.views.beside import Other
from control.errors import ControlError
from control.types.fleet import FleetSnapshot
from control.types.series import Series, SeriesResult

WINDOWS: dict[str, tuple[int, int]] = {"5m": (300, 1), "15m": (900, 1), "60m": (3600, 10)}
CARRY_S = 15.0  # workers per role: a tick may come late, a worker does not come and go with it
AWAY_S = 15.0  # without a reading: the plane was not there
LEAST_WINDOW_S = 120.0
PAST_KEPT_S = 60.0  # what was made of a past window; it may reach into the present
ZOOM = "zoom"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What the toolbar says. `beside`: the other day whose same hours are drawn in grey."""

    basis: Basis = "wall"
    by: str = "phase"
    window: str = "15m"
    blended: bool = False
    beside: Other = beside.NOTHING

    @property
    def lines(self) -> tuple[LineSpec, ...]:
        return lines.utilization(self.basis, self.by, blended=self.blended)


@dataclass(frozen=True, slots=True)
class Found:
    """What was read of one window."""

    lines: Mapping[tuple[str, str], SeriesResult | None]  # by metric and grouping
    earlier: Mapping[str, SeriesResult]  # of the other day, by line; none while nothing is compared
    roles: SeriesResult | None
    happened: Happened


@dataclass(frozen=True, slots=True)
class Shown:
    """What this part of the page says and draws, made once per reading for everybody who chose the same."""

    title: str
    legend: str  # markup
    lines: Mapping[str, bytes]  # datasets
    role_legend: str
    roles: Mapping[str, bytes]
    limited: Mapping[str, bytes]  # empty: no verdict on the bottleneck is known
    lanes: tuple[Lane, ...]  # none: no command that could tell is known
    routing: Mapping[str, bytes]
    compared: str  # what is grey, and the difference in words; "" while nothing is compared


def utilization(hub: Hub, chosen: Chosen, past: tuple[float, float] | None) -> None:
    """The lines and, under the same time axis, workers per role: live, or a brushed window that stands still."""
    look = hub.look()
    snapshot = look.snapshot
    if snapshot is None:
        return
    window_s, _ = WINDOWS[chosen.window]
    since, until = past or (snapshot.at_unix_s - window_s, snapshot.at_unix_s)
    try:
        found = _find(hub, chosen, past, since, until)
    except ControlError as error:
        st.html(cards.banner(f"The history did not answer: {error}", "broken", alert=True))
        return
    shown = hub.memo(
        ("utilization", chosen, past, past and session.tz_name()),
        look.reading if past is None else int(hub.now() // PAST_KEPT_S),
        lambda: _shown(snapshot, chosen, past, found),
    )
    _draw(snapshot, chosen, past, shown)


def _find(hub: Hub, chosen: Chosen, past: tuple[float, float] | None, since: float, until: float) -> Found:
    """May raise ControlError. The blended line is compared with no other day: it is grey itself."""
    window_s, step_s = WINDOWS[chosen.window]
    wanted = {(line.metric, line.by) for line in chosen.lines}
    compared = [line for line in chosen.lines if line.metric != lines.BLENDED and chosen.beside.shift_s]
    return Found(
        lines={(metric, by): _read(hub, metric, by, past, window_s, step_s) for metric, by in wanted},
        earlier={line.name: beside.earlier(hub, line, chosen.beside, since, until) for line in compared},
        roles=_read(hub, "num_workers", "role", past, window_s, step_s),
        happened=happened.read(hub, since, until),
    )


def _shown(snapshot: FleetSnapshot, chosen: Chosen, past: tuple[float, float] | None, found: Found) -> Shown:
    basis, ceilings, drawn = chosen.basis, snapshot.ceilings, chosen.lines
    since, until = found.happened.since_unix_s, found.happened.until_unix_s
    named = lines.named_points(drawn, lambda metric, by: found.lines[metric, by])
    if past is None:
        named = [(name, points[:-1]) for name, points in named]  # not every worker has told the youngest bucket yet
        since = frames.begin(named, since, until, LEAST_WINDOW_S)
    means = {name: frames.mean(points) for name, points in named} if past else None
    known = {name for name, points in named if points}
    read = [(line.name, found.lines[line.metric, line.by]) for line in drawn if past]
    sources = {name: result.provenance for name, result in read if result is not None}
    legend = lines.legend(drawn, snapshot, basis, means, known, lambda line: zones.both(ceilings, line, basis), sources)
    title = words_of(basis) + (f", mean of {_range_words(past)}" if past else "")
    series = found.roles.series if found.roles else ()
    held = [each for each in series if frames.largest([("", each.points)])]
    lanes = () if foreign.is_unseen(snapshot) else found.happened.lanes(since)  # nothing is routed there
    limiting = _limiting(found, since, until)
    return Shown(
        title=title,
        legend=cards.legend(legend, title),
        lines=_line_data(snapshot, chosen, named, found, since),
        role_legend=cards.legend(_role_legend(snapshot, held, past), "Workers per role"),
        roles=_role_data(snapshot, held, found.happened, since),
        limited=_limited_data(limiting, since, until),
        lanes=lanes,
        routing=routing_steps.datasets(lanes, since, until),
        compared=_compared(chosen, named, found),
    )


def _draw(snapshot: FleetSnapshot, chosen: Chosen, past: tuple[float, float] | None, shown: Shown) -> None:
    st.html(shown.legend)
    names = ", ".join(line.name for line in chosen.lines)
    alt = f"{shown.title}: {names}, as a fraction of the device's peak, over time."
    key = f"util_{chosen.basis}_{chosen.by}_{chosen.blended}_{chosen.beside.shift_s}"
    if past is None:
        draw.chart(_util_spec(chosen), shown.lines, key=key, alt=alt)
    else:
        key = f"{key}_{past[0]:.0f}_{past[1]:.0f}"
        _zoomable(_util_spec(chosen, ZOOM), shown.lines, key, f"{alt} Drag to zoom.")
    if shown.compared:
        st.caption(shown.compared)
    if chosen.blended:
        st.caption(f"Grey, blended: {lines.blended_words(snapshot)}")
    if shown.limited:
        st.html(cards.legend([], "What limited"))
        draw.chart(charts.limited(), shown.limited, key="limited", alt="What limited the fleet over the same time.")
    st.html(shown.role_legend)
    draw.chart(
        charts.role_steps(96), shown.roles, key="role_steps", alt="Workers per role over the same time, as steps."
    )
    if shown.lanes:
        lanes = ", ".join(each.words for each in shown.lanes)
        st.html(cards.legend([], "Routing settings"))
        draw.chart(
            charts.routing_steps(len(shown.lanes)),
            shown.routing,
            key=f"routing_{len(shown.lanes)}",
            alt=f"Routing settings over the same time, as steps: {lanes}.",
        )


def _zoomable(spec: charts.Spec, data: Mapping[str, bytes], key: str, alt: str) -> None:
    """A window of the past stands still, so that a drag on it can look closer."""
    interval = draw.brushable(spec, data, key=key, param=ZOOM, alt=alt)
    if interval is not None:
        day.zoom(interval)


def _role_legend(snapshot: FleetSnapshot, held: Sequence[Series], past: tuple[float, float] | None) -> list[cards.Line]:
    if past is None:
        return figures.role_legend(snapshot, [each.label for each in held])
    return figures.role_means([(each.label, frames.mean(each.points)) for each in held])


def _compared(chosen: Chosen, named: Sequence[frames.Labelled], found: Found) -> str:
    """What is grey, and by how much the two days differ."""
    if not found.earlier:
        return ""
    told = [
        beside.difference(line.name, points, found.earlier[line.name], line.label, chosen.beside)
        for line, (_, points) in zip(chosen.lines, named, strict=True)
        if points and line.name in found.earlier
    ]
    return " ".join([f"Grey: {chosen.beside.when}, the same hours. Where both are known:", *told])


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
    snapshot: FleetSnapshot, chosen: Chosen, named: Sequence[frames.Labelled], found: Found, since: float
) -> dict[str, bytes]:
    until = found.happened.until_unix_s
    earlier = [
        (line.name, beside.moved(found.earlier[line.name], line.label, chosen.beside, since, until))
        for line, (_, points) in zip(chosen.lines, named, strict=True)
        if points and line.name in found.earlier
    ]
    top = frames.top_of([frames.largest([*named, *earlier])])
    return {
        "live": frames.lines(frames.since(named, since)),
        "span": frames.span(since, until, top),
        "earlier": frames.lines(earlier),
        "zones": zones.dataset(snapshot.ceilings, chosen.lines, chosen.basis, top),
        **found.happened.marks(since),
    }


def _limiting(found: Found, since: float, until: float) -> list[Limited]:
    """Where a plane looked: the workers that it saw are recorded each second."""
    told = found.happened.limited(since)
    if found.roles is None:
        return told
    known = [each.points for each in found.roles.series]
    return limited.without(told, frames.gaps(known, found.roles.step_s, since, until, AWAY_S + found.roles.step_s))


def _limited_data(found: Sequence[Limited], since: float, until: float) -> dict[str, bytes]:
    if not found:
        return {}
    return {"live": limited.dataset(found, since, until), "span": frames.span(since, until, 1.0)}


def _role_data(snapshot: FleetSnapshot, held: Sequence[Series], found: Happened, since: float) -> dict[str, bytes]:
    named = [(each.label, frames.carried(each.points, CARRY_S)) for each in held]
    most = max(1.0, frames.largest(named) or 1.0, float(len(snapshot.workers)))
    return {
        "live": frames.lines(frames.since(named, since)),
        "span": frames.span(since, found.until_unix_s, most),
        **found.marks(since),
    }


def _util_spec(chosen: Chosen, zoom: str = "") -> charts.Spec:
    drawn = chosen.lines
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
        earlier=bool(chosen.beside.shift_s),
        zoom=zoom,
    )
