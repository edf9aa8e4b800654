"""One run of the console for one tab: page list, login, frame, page. Streamlit runs this file from the top.

Nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from app import session, theme
from app.fleets import PARAM, Fleets
from app.place import shared_fleets
from app.views import audit, explore, fleets, overview, pools, requests, roofline, wall, workers
from app.views.shell import Page, draw_shell

PAGES: tuple[Page, ...] = (
    Page("Overview", "overview", "Operate", overview.page),
    Page("Pools & routing", "pools", "Operate", pools.page),
    Page("Workers", "workers", "Operate", workers.page),
    Page("Fleets", "fleets", "Operate", fleets.page, of_one_fleet=False),
    Page("Explore", "explore", "Understand", explore.page),
    Page("Roofline", "roofline", "Understand", roofline.page),
    Page("Requests", "requests", "Understand", requests.page),
    Page("Audit log", "audit", "Understand", audit.page),
)


def run(fleets: Fleets, pages: Sequence[Page] = PAGES) -> None:
    """Draw one run of this tab, of the fleet that its address names; the first page is the one to start with."""
    st.set_page_config(page_title="Phaseline", layout="wide", initial_sidebar_state=216)
    st.html(theme.STYLE)
    if not session.is_logged_in(fleets.own):
        return
    hub = fleets.hub(st.query_params.get(PARAM, ""))
    if hub is not fleets.own and not session.is_logged_in(hub):
        return
    if wall.is_asked_for():
        wall.page(hub)
    else:
        draw_shell(fleets, hub, pages)


if __name__ == "__main__":
    run(shared_fleets())
