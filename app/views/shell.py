"""What surrounds every page: navigation, who is logged in, banners, and the looks of a silent or starting plane.

A page is drawn only when there is a snapshot; its own emptiness is its own business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import urlencode

import streamlit as st

from app import cards, foreign, push, session
from app.fleets import PARAM, Fleets
from app.source import Hub
from control.types.fleet import FleetSnapshot


@dataclass(frozen=True, slots=True)
class Page:
    title: str
    path: str
    section: str
    draw: Callable[[Hub, FleetSnapshot], None]
    of_one_fleet: bool = True


def draw_shell(fleets: Fleets, hub: Hub, pages: Sequence[Page]) -> None:
    """Sidebar, banners, then the chosen page."""
    listed = [
        st.Page(_body(hub, page), title=page.title, url_path=page.path, default=page is pages[0]) for page in pages
    ]
    chosen = st.navigation(listed, position="hidden")
    _sidebar(fleets, hub, pages, listed)
    if st.session_state.get("page") != chosen.url_path:
        st.session_state["page"] = chosen.url_path
        session.look_again()
    given, page = st.query_params.get(PARAM, ""), pages[listed.index(chosen)]
    if page.of_one_fleet and fleets.lost(given):
        _nowhere(fleets, given)
    else:
        chosen.run()


def _sidebar(fleets: Fleets, hub: Hub, pages: Sequence[Page], listed: Sequence[st.Page]) -> None:
    with st.sidebar:
        st.html(cards.brand("Phaseline"))
        asked = _fleet_switch(fleets)
        section = ""
        for page, link in zip(pages, listed, strict=True):
            if page.section != section:
                section = page.section
                st.caption(section)
            st.page_link(link, label=page.title, query_params={PARAM: asked} if asked else None)
        who = session.principal()
        role = "" if who.role == who.name else f' <span class="pl-muted">({escape(who.role)})</span>'
        st.space("small")
        wall = urlencode({"view": "wall"} | ({PARAM: asked} if asked else {}))
        st.html(
            f'<div class="pl" style="font-size:13px"><div>{escape(who.name)}{role}</div>'
            f'<div class="pl-muted">Times in {escape(session.tz_name())}</div>'
            f'<a class="pl-muted" style="color:inherit" href="/?{escape(wall)}" target="_blank">Wall display</a></div>'
        )
        st.button("Log out", on_click=session.log_out, args=(hub,), width="stretch")


def _fleet_switch(fleets: Fleets) -> str:
    """Which fleet, where there are several; what a link to a page has to say of it."""
    given = st.query_params.get(PARAM, "")
    names = fleets.names(given)
    lost = fleets.lost(given)
    if len(names) < 2 and not lost:
        return ""
    shown = None if lost else fleets.shown(given)
    chosen = st.selectbox(
        "Fleet", names, index=None if shown is None else names.index(shown), placeholder="Choose", key=f"fleet_{shown}"
    )
    if chosen is not None and chosen != shown:
        st.query_params[PARAM] = chosen
        session.look_again()
        st.rerun()
    return given if given in names else ""


def _nowhere(fleets: Fleets, given: str) -> None:
    """A fleet of that name is not there: nothing of another one appears in its place, and nothing can be pressed."""
    known = ", ".join(fleets.names())
    text = (
        f"It was detached, or the link is of another plane. Its history stays. There are: {known}; choose under Fleet."
    )
    st.html(cards.heading(given[:40]))
    st.html(cards.empty(f"There is no fleet named {given[:40]} here", text))

    @st.fragment(run_every=3.0)
    def wait() -> None:
        if not fleets.lost(given):
            st.rerun()

    wait()


def _body(hub: Hub, page: Page) -> Callable[[], None]:
    def body() -> None:
        snapshot = hub.look().snapshot
        if snapshot is None:
            st.html(cards.heading(page.title))
            _waiting(hub)
            return
        st.html(cards.heading(page.title, foreign.title(snapshot)))
        push.slot(hub, "banners")
        push.rerun_when_changed(hub, "drawn", "page")  # actions disabled and enabled, workers come and go
        page.draw(hub, snapshot)

    return body


def _waiting(hub: Hub) -> None:
    """No snapshot yet: say why, try on, draw the page when there is one."""

    @st.fragment(run_every=1.0)
    def wait() -> None:
        look = hub.look()
        if look.snapshot is not None:
            st.rerun()
        elif look.error:
            st.html(cards.banner(f"No answer yet: {look.error}", "broken", alert=True))
            st.caption("The console tries again every second. `phaseline status` says which processes run.")
        else:
            st.html(cards.empty("Waiting for the first reading", f"The plane at {hub.base_url} is being asked."))

    wait()
