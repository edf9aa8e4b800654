"""Latency by arrival, live: the first token's percentiles, and the age of the oldest request that still waits for one.

Percentiles know a request when it ends, and are put where it arrived; the oldest age knows it while it waits. So when
everything stands still the one line stops and the other one climbs.
"""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from app import cards, charts, draw, format, frames, marks, theme
from app.source import Hub
from control.errors import ControlError
from control.types import FleetSnapshot, SeriesResult

STEPS: dict[str, tuple[int, int]] = {"5m": (300, 1), "15m": (900, 10), "60m": (3600, 10)}
#: Metric -> its line's name, colour and dash.
LINES: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "ttft_p99_s": ("TTFT p99, by arrival", theme.PREFILL, (1, 0)),
    "ttft_p50_s": ("TTFT p50, by arrival", theme.DECODE, (6, 3)),
    "oldest_waiting_s": ("Oldest waiting now", theme.DANGER, (2, 2)),
}
NAMES = tuple(name for name, _, _ in LINES.values())
COLORS = tuple(color for _, color, _ in LINES.values())
DASHES = tuple(dash for _, _, dash in LINES.values())
LEAST_TOP_S = 0.1


def lines(hub: Hub, window: str) -> None:
    """Under the same kind of axis as the two lines."""
    look = hub.look()
    snapshot = look.snapshot
    if snapshot is None:
        return
    window_s, step_s = STEPS[window]
    try:
        found = {metric: hub.live(metric, "fleet", window_s, step_s).result for metric in LINES}
    except ControlError as error:
        st.html(cards.banner(f"The history did not answer: {error}", "broken", alert=True))
        return
    legend, data = hub.memo(("waiting", window), look.reading, lambda: _shown(hub, snapshot, found, window_s))
    st.html(legend)
    draw.chart(
        charts.lines(
            names=NAMES,
            colors=COLORS,
            dashes=DASHES,
            number_format=".2~f",
            read_format=".3~f",
            title=None,
            height=110,
            labels=False,
        ),
        data,
        key="waiting",
        alt="Time to the first token by arrival, and the age of the oldest request that waits for one, in seconds.",
    )


def _shown(
    hub: Hub, snapshot: FleetSnapshot, found: Mapping[str, SeriesResult | None], window_s: int
) -> tuple[str, Mapping[str, bytes]]:
    """The legend and the datasets, once per reading for everybody."""
    until = snapshot.at_unix_s
    named = [(LINES[metric][0], frames.points_of(result)) for metric, result in found.items()]
    since = frames.begin(named, until - window_s, until, 120.0)
    named = frames.since(named, since)
    top = max(LEAST_TOP_S, 1.05 * (frames.largest(named) or 0.0))
    return cards.legend(_entries(snapshot), "Waiting, in seconds"), {
        "live": frames.lines(named),
        "span": frames.span(since, until, top),
        **marks.marks(hub.commands(), [], since, until),
    }


def _entries(snapshot: FleetSnapshot) -> list[cards.Line]:
    traffic = snapshot.traffic
    values = (traffic.ttft_p99_s, traffic.ttft_p50_s, traffic.oldest_waiting_s)
    tag = "simulated" if snapshot.simulated else "measured"
    return [
        cards.Line(
            label=name, value=format.duration(value), color=color,
            dash="" if dash == (1, 0) else " ".join(map(str, dash)), tag=tag, tag_note=traffic.slo_text,
        )
        for name, color, dash, value in zip(NAMES, COLORS, DASHES, values, strict=True)
    ]  # fmt: skip
