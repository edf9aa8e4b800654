"""Overview: "are we fine?" Health in words, five figures, the two lines over workers per role, load beside them.

A composition: each part is in its own module. Words and figures are pushed (`app.push`), charts are small fragments
that run again at each reading; the toolbar is outside them: a refresh moves nothing that a person reaches for.
"""

from __future__ import annotations

import streamlit as st

from app import cards, push, url
from app.lines import Basis
from app.source import Hub
from app.views import beside, day, detail, waiting
from control.types.fleet import FleetSnapshot

WINDOW_WORDS: dict[str, str] = {"5m": "5 min", "15m": "15 min", "60m": "60 min"}
BASES: dict[str, Basis] = {"wall": "wall", "in-phase": "in_phase"}


def page(hub: Hub, snapshot: FleetSnapshot) -> None:
    """The page from top to bottom."""
    past = day.past()
    push.slot(hub, "health")
    if not snapshot.workers and past is None:
        st.html(cards.empty("No workers yet", _none(snapshot)))
        st.fragment(day.strip, run_every=60.0)(hub, "wall", beside.NOTHING)
        return
    push.slot(hub, "alerts")
    push.slot(hub, "figures")
    chosen = _toolbar()
    left, right = st.columns([4, 1], gap="small")
    with left:
        if past:
            st.fragment(detail.utilization)(hub, chosen, past)
        else:
            push.live(_live, "lines")(hub, chosen)
        st.fragment(day.strip, run_every=60.0)(hub, chosen.basis, chosen.beside)
    with right:
        push.slot(hub, "limits")
        push.slot(hub, "loads")
    if past:
        day.listed(hub, past)
    else:
        push.slot(hub, "latest")
    push.slot(hub, "alert_list")


def _none(snapshot: FleetSnapshot) -> str:
    if snapshot.kind == "none":
        return "This plane has no workers of its own: attach a fleet on the page Fleets. What was is below."
    if snapshot.is_attached:
        return f"{snapshot.health_text}; the page Fleets says more. What was is below."
    return "The fleet has not started a worker. What was is below."


def _live(hub: Hub, chosen: detail.Chosen) -> None:
    """All charts of the live window, in one rerun: most of what a rerun costs is the same however little it draws."""
    detail.utilization(hub, chosen, None)
    waiting.lines(hub, chosen.window)


def _toolbar() -> detail.Chosen:
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
        other = beside.control()
        blended = url.toggle(
            "Blended line",
            name="blended",
            help="What other dashboards show: the share of time in which anything ran, whatever it was.",
        )
        if day.past():
            st.button("Back to live", type="primary", on_click=day.back_to_live)
    return detail.Chosen(basis=BASES[basis], by=by, window=window, blended=blended, beside=other)
