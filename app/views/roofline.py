"""Roofline: each worker under its device's roof. Why prefill and decode want different machines, at one glance.

The last minute, live, one point per worker and phase; or a range, one point per bucket, which shows how a batch moves.
"""

from __future__ import annotations

import streamlit as st

from app import cards, draw, foreign, push, roofline, truth, url
from app.source import Hub
from app.views import measured, not_known
from control.errors import ControlError
from control.types.fleet import FleetSnapshot
from control.types.roofline import Roofline

RANGES: dict[str, int] = {"15m": 900, "1h": 3600, "6h": 21_600, "24h": 86_400}
WORDS: dict[str, str] = {"now": "Last minute", "15m": "15 min", "1h": "1 hour", "6h": "6 hours", "24h": "24 hours"}
MAX_ROWS = 24
EXPLAINED = (
    "Right of the ridge the device's FLOP/s limit, left of it its bandwidth. Prefill uses each weight that it reads "
    "for every token of a prompt; decode reads all of them for one token of each sequence, so a larger batch moves it "
    "to the right, and up. Solid: the peak. Dashed: what is achievable."
)


def page(hub: Hub, snapshot: FleetSnapshot) -> None:
    """Chart, its points as rows, then every utilization of every group."""
    push.slot(hub, "health")
    if not snapshot.workers:
        st.html(cards.empty("No workers yet", snapshot.health_text or "The fleet has not started a worker."))
        return
    over = url.segmented("Range", WORDS, name="over", default="now")
    chart = push.live(_chart, "roofline") if over == "now" else st.fragment(_chart)
    chart(hub, over)
    push.live(_utilizations, "truth")(hub)
    measured.section(hub, snapshot)
    not_known.section(snapshot)


def _chart(hub: Hub, over: str) -> None:
    look = hub.look()
    if look.snapshot is None:
        return
    try:
        found = _read(hub, over, look.reading, look.snapshot.at_unix_s)
    except ControlError as error:
        st.html(cards.banner(f"The roofline could not be read: {error}", "broken", alert=True))
        return
    title, why = f"Roofline, {WORDS[over].lower()}", _unknown(look.snapshot)
    st.html(cards.legend([] if why and not found.points else roofline.legend(found), title))
    if not found.points:
        st.html(cards.empty(*(why or ("No step in this time", "A phase that did not run has no point."))))
        return
    draw.chart(
        roofline.spec(400),
        roofline.datasets(found),
        key=f"roofline_{over}",
        alt="FLOP per byte against FLOP/s of each worker and phase, on log axes, under its device's roofline.",
    )
    st.caption(f"{EXPLAINED} {_source(found)}")
    rows = roofline.rows(found)
    st.html(cards.table(roofline.HEAD, rows[:MAX_ROWS], "Points of the roofline, the furthest under its roof first"))
    if len(rows) > MAX_ROWS:
        st.caption(f"The {MAX_ROWS} furthest under their roof of {len(rows)} points.")


def _unknown(snapshot: FleetSnapshot) -> tuple[str, str] | None:
    """Why no worker has a point though it may have run: title and text."""
    for phase in ("prefill", "decode", "in_phase"):
        why = foreign.unknown(snapshot, phase)
        if why is not None:
            return f"No point: {why.state}", f"{why.words}. A point needs FLOPs, bytes and time of a phase."
    return None


def _read(hub: Hub, over: str, reading: int, now_unix_s: float) -> Roofline:
    if over == "now":
        return hub.cached(("roofline", reading), 5.0, lambda plane: plane.roofline())
    since = now_unix_s - RANGES[over]
    return hub.cached(("roofline", over, int(now_unix_s // 30)), 60.0, lambda plane: plane.roofline(since, now_unix_s))


def _source(found: Roofline) -> str:
    told = sorted({f"{each.name}: {each.basis} peak, {each.achievable_provenance} ceiling" for each in found.roofs})
    return ". ".join(told) + "." if told else ""


def _utilizations(hub: Hub) -> None:
    """Wall and in-phase, compute and bandwidth, both phases, beside what the device says of itself."""
    snapshot = hub.look().snapshot
    if snapshot is None:
        return
    st.html(cards.legend([], "Every utilization, of each group, over the last seconds"))
    rows = truth.rows(snapshot)
    st.html(
        cards.table(
            truth.head(snapshot), rows[:MAX_ROWS], "Utilization of fleet, pools and workers, derived and measured"
        )
    )
    st.caption(truth.note(snapshot))
