"""Who sits in front of this browser tab: the visit its cookie refers to, role, and the version a form was drawn from.

Tokens stay on the server (`app.visits`); logging in is `app.login`'s. The plane checks role and token at every action;
what is decided here is only what to offer.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import tzinfo

import streamlit as st

from app import format
from app.source import Hub
from app.visits import Visit, cookie_name
from control.errors import NotAllowed
from control.types.api import Principal
from control.types.commands import Desired
from control.types.fleet import FleetSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What the controls of a page were drawn from. It moves only when the person looks again or their command ends."""

    version: int
    desired: Desired
    fleet_id: str = ""

    @property
    def key(self) -> str:
        """In the keys of its controls: what was set for one fleet is not carried to another."""
        return f"{self.fleet_id}_{self.version}"


def tz() -> tzinfo:
    """The viewer's time zone, as the browser tells it."""
    return format.zone(st.context.timezone)


def tz_name() -> str:
    return st.context.timezone or "UTC"


def principal() -> Principal:
    found: Principal = st.session_state["principal"]
    return found


def token(hub: Hub) -> str:
    """What this tab's actions carry; raises NotAllowed when it was logged out meanwhile, here or in another tab."""
    visit = find_visit(hub)
    if visit is None:
        raise NotAllowed("your session has ended: log in again")
    return visit.token


def find_visit(hub: Hub) -> Visit | None:
    """The visit of this tab. The cookie was read when the tab connected; that its visit still is open is asked now."""
    if "visit" not in st.session_state:
        st.session_state["visit"] = st.context.cookies.get(cookie_name(st.context.headers.get("Host") or ""), "")
    return hub.visits.find(st.session_state["visit"], hub.now())


def is_logged_in(hub: Hub) -> bool:
    """Whether this tab belongs to a visit that the plane still honours; otherwise it goes to the login page.

    The run then ends as a whole one does: after `st.stop` the fragments of the page before would run on, into places
    that are no longer there, and the browser would show an empty page.
    """
    visit = find_visit(hub)
    if visit is not None and hub.honours(st.session_state["visit"]):
        hub.admit(visit.token)
        st.session_state["principal"] = hub.principal(visit.token) or visit.principal
        return True
    go_to_login()
    return False


def log_out(hub: Hub) -> None:
    """End the visit, in every tab of this browser; the login page then takes the cookie away."""
    hub.visits.close(st.session_state.get("visit", ""))
    st.session_state["left"] = True


def go_to_login() -> None:
    """By script, with a link for who waits. The page asked for comes back after the login."""
    if st.session_state.pop("left", False):
        place = "'/login?left=1'"
    else:
        ended = "&ended=1" if st.session_state.get("principal") else ""
        place = f"'/login?next=' + encodeURIComponent(location.pathname + location.search) + '{ended}'"
    words = '<div class="pl pl-empty"><b>You are not logged in</b><a href="/login" target="_self">Log in</a></div>'
    st.html(f"{words}<script>window.location.replace({place})</script>", unsafe_allow_javascript=True)


def can_act(hub: Hub, snapshot: FleetSnapshot | None) -> str:
    """Why this person cannot act now; "" when they can. Shown beside every disabled control."""
    if principal().role != "operator":
        return f"{principal().name} is a {principal().role}: looking is allowed, changing needs an operator."
    look = hub.look()
    if snapshot is None or look.is_stale(hub.now()):
        return "The plane does not answer; actions wait until it is back."
    return ""


def form(snapshot: FleetSnapshot) -> Form:
    """The version this page's controls were drawn from, pinned at the first draw."""
    pinned: Form | None = st.session_state.get("form")
    if pinned is None or pinned.fleet_id != snapshot.fleet_id:
        pinned = Form(version=snapshot.desired.version, desired=snapshot.desired, fleet_id=snapshot.fleet_id)
        st.session_state["form"] = pinned
    return pinned


def look_again() -> None:
    """Draw the controls anew from what holds now."""
    st.session_state.pop("form", None)
