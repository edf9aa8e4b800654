"""Fleets: which serving systems are looked at beside our own, what each can, what we may, and attaching another one.

Attaching means reading its engines' metrics pages. More is offered for a fleet only when an operator allowed it here.
"""

from __future__ import annotations

from contextlib import suppress
from urllib.parse import urlencode

import streamlit as st

from app import cards, foreign, format, session
from app.fleets import PARAM
from app.source import Hub
from app.views import attach_form
from control.client import AttachedInfo
from control.errors import ControlError
from control.types.fleet import Capability, FleetSnapshot

ANSWER = "fleets_answer"
LOOK_EVERY_S = 3.0
EMPTY = (
    "vLLM, SGLang, NVIDIA Dynamo, Ray Serve and any server of the OpenAI API can be looked at beside our own workers, "
    "as they are and with no restart. Their workers are listed here, in a watched file, or by what steers them."
)
UNTOUCHED = (
    "Nothing of theirs changes: engines, routers and pools go on as they are now. Its history stays, and the same "
    "words attach it again. What is allowed now has to be allowed anew."
)


def page(hub: Hub, snapshot: FleetSnapshot) -> None:
    """The list, then the form."""
    try:
        known = hub.client(session.token(hub)).attached()
    except ControlError as error:
        st.html(cards.banner(f"The attached fleets did not come: {error}", "broken", alert=True))
        return
    why_not = session.can_act(hub, snapshot)
    st.html(cards.heading_small("Attached fleets"))
    st.html(cards.banner(why_not) if why_not else "<span></span>")
    if known:
        for each in known:
            _one(hub, each, why_not)
    else:
        st.html(cards.empty("No fleet is attached", EMPTY))
    _answer()
    st.html(cards.heading_small("Attach another"))
    attach_form.form(hub, why_not)
    if leaving := st.session_state.get("detaching"):
        st.dialog(f"Detach {leaving}?", on_dismiss=_stay)(_confirm)(hub, leaving)


def _one(hub: Hub, info: AttachedInfo, why_not: str) -> None:
    """What is seen of it is read again; what can be pressed stands still beside it."""
    name, now = info.attachment.name, hub.now()
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
            with st.container(width="stretch"):
                st.fragment(_health, run_every=LOOK_EVERY_S)(hub, info, now)
            st.button(
                "Detach",
                key=f"detach-{name}",
                on_click=_ask,
                args=(name,),
                disabled=bool(why_not),
                help=why_not or "Asks first. Its engines do not notice.",
            )
        left, right = st.columns([3, 2], gap="medium")
        with left:
            st.fragment(_told, run_every=LOOK_EVERY_S)(hub, info, now)
        with right:
            _permissions(hub, info, why_not)
        if info.missing:
            with st.expander(f"What is not known of it ({len(info.missing)})"):
                rows = foreign.missing_rows(info.missing, info.looks.num_workers)
                st.html(cards.table(foreign.HEAD, rows, f"What {name} does not say"))


def _newest(hub: Hub, drawn: AttachedInfo, drawn_unix_s: float) -> AttachedInfo | None:
    """As it is now, read once for all tabs; None while it cannot be read, and once it is detached."""
    if hub.now() - drawn_unix_s < LOOK_EVERY_S / 2:
        return drawn
    name = drawn.attachment.name
    with suppress(ControlError):
        found = hub.cached(("attached",), LOOK_EVERY_S / 2, lambda plane: plane.attached())
        return next((each for each in found if each.attachment.name == name), None)
    return None


def _health(hub: Hub, drawn: AttachedInfo, drawn_unix_s: float) -> None:
    info, name = _newest(hub, drawn, drawn_unix_s), drawn.attachment.name
    if info is None:
        st.html(cards.health(name, "It is not attached now, or the plane does not answer", "attention", (), hub.now()))
        return
    state, text = foreign.looked(info)
    facts = (foreign.name(info.attachment.kind), foreign.may(info))
    st.html(cards.health(name, text, state, facts, info.at_unix_s))


def _told(hub: Hub, drawn: AttachedInfo, drawn_unix_s: float) -> None:
    info = _newest(hub, drawn, drawn_unix_s)
    st.html("<span></span>" if info is None else _facts(info))


def _facts(info: AttachedInfo) -> str:
    told, tz, newest = info.attachment, session.tz(), info.looks.newest_unix_s
    device = f"{told.devices_per_worker} × {told.device}" if told.devices_per_worker > 1 else told.device
    pairs = (
        ("Workers", f"{info.looks.num_workers}, {foreign.found_by(told)}"),
        ("Steered by", foreign.steered_by(info)),
        ("Last look", f"{format.clock(newest, tz)}, every {told.every_s:g} s" if newest else "none yet"),
        ("Model, device", f"{told.model or 'not named'}, {device or 'not named'}"),
        ("Bounds", f"up to {told.max_workers} workers a pool, {told.limit_s:g} s for a change to show"),
        ("Attached", f"by {info.who} at {format.moment(info.at_unix_s, tz)}"),
    )
    rows = [(cards.Cell(name), cards.Cell(text)) for name, text in pairs]
    address = f"/?{urlencode({PARAM: told.name})}"
    link = f'<a href="{address}" target="_self">Look at {cards.text(told.name)}</a>'
    return cards.table(("", ""), rows, f"Facts about {told.name}") + f'<div class="pl pl-note">{link}</div>'


def _permissions(hub: Hub, info: AttachedInfo, why_not: str) -> None:
    """One switch for each thing that could be done to it; by whose word, beside it."""
    name, by, tz = info.attachment.name, {each.capability: each for each in info.allowed}, session.tz()
    can = [each for each in foreign.ACTS if each in info.can]
    if not can:
        st.caption("Nothing but observing: nothing that is attached so can be changed through Phaseline.")
    for each in can:
        given, key = by.get(each), f"allow-{name}-{each}"
        since = f"Allowed by {given.who} at {format.moment(given.at_unix_s, tz)}" if given else "Not allowed"
        st.session_state[key] = given is not None
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.toggle(
                foreign.ACTS.get(each, each.value),
                key=key,
                on_change=_allow,
                args=(hub, name, each, key),
                disabled=bool(why_not),
                help=why_not or foreign.ACT_WORDS.get(each, ""),
                width=150,
            )
            st.caption(since)


def _allow(hub: Hub, name: str, capability: Capability, key: str) -> None:
    client, on = hub.client(session.token(hub)), bool(st.session_state[key])
    said = attach_form.tried(lambda: client.allow(name, capability) if on else client.forbid(name, capability))
    words = f"{name} may {'now' if on else 'no longer'} be changed so: {capability}."
    st.session_state[ANSWER] = said if isinstance(said, ControlError) else words


# --- detaching ------------------------------------------------------------


def _ask(name: str) -> None:
    st.session_state["detaching"] = name


def _stay() -> None:
    st.session_state.pop("detaching", None)


def _confirm(hub: Hub, name: str) -> None:
    st.write(UNTOUCHED)
    left, right = st.columns(2)
    if right.button(f"Detach {name}", type="primary", width="stretch"):
        _detach(hub, name)
        _stay()
        st.rerun()
    if left.button("Cancel", width="stretch"):
        _stay()
        st.rerun()


def _detach(hub: Hub, name: str) -> None:
    def detach() -> str:
        hub.client(session.token(hub)).detach(name)
        return f"{name} is detached. Its engines did not notice."

    said = st.session_state[ANSWER] = attach_form.tried(detach)
    if not isinstance(said, ControlError) and st.query_params.get(PARAM) == name:
        del st.query_params[PARAM]  # the tab was on it


def _answer() -> None:
    """What came of the last switch, or of detaching."""
    said = st.session_state.get(ANSWER)
    if said is not None:
        st.html(attach_form.answer_words(said))
