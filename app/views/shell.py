"""What surrounds every page: navigation, who is logged in, banners, and the looks of a silent or starting plane.

A page is drawn only when there is a snapshot; its own emptiness is its own business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import streamlit as st

from app import cards, format, session, theme, words
from app.source import Hub
from control.types import FleetSnapshot


@dataclass(frozen=True, slots=True)
class Page:
    title: str
    path: str
    section: str
    draw: Callable[[Hub, FleetSnapshot], None]


def draw_shell(hub: Hub, pages: Sequence[Page]) -> None:
    """Sidebar, banners, then the chosen page."""
    listed = [
        st.Page(_body(hub, page), title=page.title, url_path=page.path, default=page is pages[0]) for page in pages
    ]
    chosen = st.navigation(listed, position="hidden")
    _sidebar(hub, pages, listed)
    if st.session_state.get("page") != chosen.url_path:
        st.session_state["page"] = chosen.url_path
        session.look_again()
    chosen.run()


def _sidebar(hub: Hub, pages: Sequence[Page], listed: Sequence[st.Page]) -> None:
    with st.sidebar:
        st.html(cards.brand("Phaseline"))
        section = ""
        for page, link in zip(pages, listed, strict=True):
            if page.section != section:
                section = page.section
                st.caption(section)
            st.page_link(link, label=page.title)
        who = session.principal()
        role = "" if who.role == who.name else f' <span class="pl-muted">({escape(who.role)})</span>'
        st.space("small")
        st.html(
            f'<div class="pl" style="font-size:13px"><div>{escape(who.name)}{role}</div>'
            f'<div class="pl-muted">Times in {escape(session.tz_name())}</div></div>'
        )
        st.button("Log out", on_click=session.log_out, args=(hub,), width="stretch")


def _body(hub: Hub, page: Page) -> Callable[[], None]:
    def body() -> None:
        snapshot = hub.look().snapshot
        if snapshot is None:
            st.html(cards.heading(page.title))
            _waiting(hub)
            return
        st.html(cards.heading(page.title, f"{snapshot.fleet_id} · {snapshot.model_id}"))
        st.session_state["drawn"] = drawn_from(hub)
        st.fragment(_banners, run_every=1.0)(hub)
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


def _banners(hub: Hub) -> None:
    """Stale state, then the fleet's own notices. Always one element, so that nothing below moves when it is empty."""
    look = hub.look()
    snapshot, now = look.snapshot, hub.now()
    shown = []
    stale = look.is_stale(now)
    if session.find_visit(hub) is None:  # logged out in another tab
        session.go_to_login()
        return
    if st.session_state.get("drawn") != drawn_from(hub):
        st.rerun()  # actions disabled and enabled, workers come and go: the page draws that once
    if stale:
        answered = format.clock(look.answered_unix_s, session.tz())
        text = f"{words.stale_age(look.age_s(now), answered)} Actions are disabled until it answers."
        shown.append(cards.banner(text, "broken", alert=True))
    if snapshot is not None:
        shown += [cards.notices(found)] if (found := notices(snapshot)) else []
    st.html("".join(f'<div style="margin-bottom:6px">{banner}</div>' for banner in shown) or "<span></span>")


def drawn_from(hub: Hub) -> tuple[bool, frozenset[str]]:
    """What a page's fixed part depends on: is the plane silent, and which workers are there."""
    look = hub.look()
    workers = look.snapshot.workers if look.snapshot is not None else ()
    return look.is_stale(hub.now()), frozenset(each.worker_id for each in workers)


def notices(snapshot: FleetSnapshot) -> list[str]:
    """The plane's notices; a simulated fleet is always marked, whoever forgot to."""
    found = list(snapshot.notices)
    if snapshot.simulated and not any("simulat" in notice.lower() for notice in found):
        found.insert(0, "Simulated workers: steps take the time that a cost model says; no model is computed.")
    return found


def health_line(hub: Hub) -> None:
    """ "Are we fine?" in words; draw it from a fragment."""
    look = hub.look()
    snapshot = look.snapshot
    if snapshot is None:
        return
    word, state = words.HEALTH_WORDS[snapshot.health], snapshot.health
    if look.is_stale(hub.now()):
        word, state = "Unknown", "broken"
    facts = (
        f"{len(snapshot.workers)} workers",
        f"{snapshot.traffic.num_gateways} gateway{'' if snapshot.traffic.num_gateways == 1 else 's'}",
        f"as of {format.clock(snapshot.at_unix_s, session.tz())}",
    )
    st.html(cards.health(word, snapshot.health_text, theme_state(state), facts, snapshot.at_unix_s))


def theme_state(state: str) -> str:
    return state if state in theme.STATE_COLORS else "attention"
