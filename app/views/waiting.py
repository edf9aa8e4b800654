"""Latency, live: the first token's percentiles by arrival, and the age of the oldest request that still waits for one.

Percentiles know a request when it ends, and are put where it arrived; the oldest age knows it while it waits. So when
everything stands still the one line stops and the other one climbs. Of a fleet whose requests do not pass our gateways
there is what its engines say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import streamlit as st

from app import cards, charts, draw, foreign, format, frames, marks, theme
from app.source import Hub
from control.errors import ControlError
from control.types.fleet import FleetSnapshot
from control.types.series import SeriesResult


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    color: str
    dash: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """Lines by metric, the (window, step) in seconds of each live window, and what they are in words."""

    lines: Mapping[str, Line]
    steps: Mapping[str, tuple[int, int]]
    alt: str


OURS = Kind(
    lines={
        "ttft_p99_s": Line("TTFT p99, by arrival", theme.PREFILL, (1, 0)),
        "ttft_p50_s": Line("TTFT p50, by arrival", theme.DECODE, (6, 3)),
        "oldest_waiting_s": Line("Oldest waiting now", theme.DANGER, (2, 2)),
    },
    steps={"5m": (300, 1), "15m": (900, 10), "60m": (3600, 10)},
    alt="Time to the first token by arrival, and the age of the oldest request that waits for one, in seconds.",
)
THEIRS = Kind(
    lines={
        "worker_ttft_p99_s": Line("TTFT p99, as the engines say it", theme.PREFILL, (1, 0)),
        "worker_ttft_p50_s": Line("TTFT p50, as the engines say it", theme.DECODE, (6, 3)),
    },
    steps={"5m": (300, 10), "15m": (900, 10), "60m": (3600, 10)},  # they are not looked at each second
    alt="Time to the first token, from the engines' own histograms, in seconds.",
)
LEAST_TOP_S = 0.1


def lines(hub: Hub, window: str) -> None:
    """Under the same kind of axis as the two lines."""
    look = hub.look()
    snapshot = look.snapshot
    if snapshot is None:
        return
    unseen = foreign.is_unseen(snapshot)
    kind = THEIRS if unseen else OURS
    window_s, step_s = kind.steps[window]
    try:
        found = {metric: hub.live(metric, "fleet", window_s, step_s).result for metric in kind.lines}
    except ControlError as error:
        st.html(cards.banner(f"The history did not answer: {error}", "broken", alert=True))
        return
    legend, data = hub.memo(
        ("waiting", window, unseen), look.reading, lambda: _shown(hub, snapshot, kind, found, window_s)
    )
    st.html(legend)
    drawn = kind.lines.values()
    draw.chart(
        charts.lines(
            names=tuple(each.name for each in drawn),
            colors=tuple(each.color for each in drawn),
            dashes=tuple(each.dash for each in drawn),
            number_format=".2~f",
            read_format=".3~f",
            title=None,
            height=110,
            labels=False,
        ),
        data,
        key=f"waiting_{unseen}",
        alt=kind.alt,
    )


def _shown(
    hub: Hub, snapshot: FleetSnapshot, kind: Kind, found: Mapping[str, SeriesResult | None], window_s: int
) -> tuple[str, Mapping[str, bytes]]:
    """The legend and the datasets, once per reading for everybody."""
    until = snapshot.at_unix_s
    named = [(kind.lines[metric].name, frames.points_of(result)) for metric, result in found.items()]
    since = frames.begin(named, until - window_s, until, 120.0)
    named = frames.since(named, since)
    top = max(LEAST_TOP_S, 1.05 * (frames.largest(named) or 0.0))
    return cards.legend(_entries(snapshot, kind, named), "Waiting, in seconds"), {
        "live": frames.lines(named),
        "span": frames.span(since, until, top),
        **marks.marks(hub.commands(), [], since, until),
    }


def _entries(snapshot: FleetSnapshot, kind: Kind, named: list[frames.Labelled]) -> list[cards.Line]:
    traffic = snapshot.traffic
    values = [traffic.ttft_p99_s, traffic.ttft_p50_s, traffic.oldest_waiting_s]
    if kind is THEIRS:
        values = [frames.newest(points[:-1]) for _, points in named]
    note = foreign.first_token_words(snapshot) if kind is THEIRS else traffic.slo_text
    return [_entry(snapshot, line, value, note) for line, value in zip(kind.lines.values(), values, strict=True)]


def _entry(snapshot: FleetSnapshot, line: Line, value: float | None, note: str) -> cards.Line:
    """One that is not known was not measured."""
    tag = "simulated" if snapshot.simulated else "measured"
    if value is None:
        why = foreign.unknown(snapshot, "ttft")
        tag, note = (why.state, why.words) if why else ("no data", "")
    dash = "" if line.dash == (1, 0) else " ".join(map(str, line.dash))
    return cards.Line(
        label=line.name, value=format.duration(value), color=line.color, dash=dash, tag=tag, tag_note=note
    )
