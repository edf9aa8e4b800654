"""The second source: what NVML's GPM measures of one device, beside what its steps add up to, and the difference."""

from __future__ import annotations

import streamlit as st

from app import cards, charts, draw, frames, marks, measured, push, truth, url
from app.source import Hub
from control.types.fleet import FleetSnapshot

WINDOW_S, STEP_S = 900, 10


def section(hub: Hub, snapshot: FleetSnapshot) -> None:
    """Which worker and resource, then the three lines, or why there are none."""
    st.html(cards.legend([], "Derived and measured, side by side"))
    if truth.is_measured(snapshot):
        with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
            workers = [each.worker_id for each in snapshot.workers]
            worker_id = url.select("Device of worker", workers, name="device", default=workers[0], width=200)
            words = {name: pair.words for name, pair in measured.PAIRS.items()}
            resource = url.segmented("Resource", words, name="resource", default="compute")
        push.live(_chart, "measured")(hub, worker_id, resource)
    else:
        st.caption(truth.no_measured_source(snapshot))


def _chart(hub: Hub, worker_id: str, resource: str) -> None:
    look, pair = hub.look(), measured.PAIRS[resource]
    if look.snapshot is None:
        return
    derived = hub.live(pair.derived, "worker", WINDOW_S, STEP_S).result
    told = hub.live(pair.measured, "worker", WINDOW_S, STEP_S).result
    named = measured.lines(derived, told, worker_id)
    until = look.snapshot.at_unix_s
    if not named:
        st.html(cards.empty("The device has measured nothing yet", truth.no_measured_source(look.snapshot)))
        return
    low = min((p.value for _, points in named for p in points if p.value is not None), default=0.0)
    top = frames.top_of([frames.largest(named)])
    data = {
        "live": frames.lines(named),
        "span": frames.span(until - WINDOW_S, until, top, min(0.0, low)),
        **marks.marks(hub.commands(), [], until - WINDOW_S, until),
    }
    spec = charts.lines(
        names=measured.NAMES, colors=measured.COLORS, dashes=measured.DASHES, number_format=".0%", read_format=".1%",
        title=None, height=180,
    )  # fmt: skip
    shown = [
        cards.Line(label=name, value="", color=color, dash=" ".join(map(str, dash)), tag=tag, tag_note="")
        for name, color, dash, tag in zip(
            measured.NAMES, measured.COLORS, measured.DASHES, ("derived", "measured", "derived"), strict=True
        )
    ]
    st.html(cards.legend(shown, f"{pair.words} of {worker_id}, wall"))
    draw.chart(spec, data, key=f"measured_{resource}", alt=f"{pair.words} of {worker_id}: derived and measured.")
