"""Fleets: which serving systems are looked at beside our own, what we may do to each, and attaching another one.

Attaching means reading its engines' metrics pages. More is offered for a fleet only when an operator allowed it here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import streamlit as st

from app import cards, format, session
from app.source import Hub
from control.client import AttachedInfo, Attachment, Survey
from control.errors import ControlError
from control.types import Capability, FleetSnapshot

Said = TypeVar("Said")
ACTS = {
    Capability.ROUTE: "Route",
    Capability.RESIZE: "Resize",
    Capability.FLIP: "Flip",
    Capability.DRAIN: "Drain",
    Capability.MIGRATE: "Migrate",
}
KINDS = {"vllm": "vLLM", "sglang": "SGLang"}
TARGETS_HELP = "One engine per line: `prefill=http://10.0.0.1:8000`, or with a name `decode:d0=http://10.0.0.2:8000`."


def page(hub: Hub, snapshot: FleetSnapshot) -> None:
    """The list, then the form."""
    try:
        known = hub.client(session.token(hub)).attached()
    except ControlError as error:
        st.html(cards.banner(f"The attached fleets did not come: {error}", "broken", alert=True))
        return
    why_not = session.can_act(hub, snapshot)
    st.html(cards.heading_small("Attached fleets"))
    if known:
        for each in known:
            _one(hub, each, why_not)
    else:
        text = "vLLM and SGLang engines can be looked at beside our own workers, as they are and with no restart."
        st.html(cards.empty("No fleet is attached", text))
    st.html(cards.heading_small("Attach another"))
    st.html(cards.banner(why_not) if why_not else "<span></span>")
    _form(hub, why_not)


def _one(hub: Hub, info: AttachedInfo, why_not: str) -> None:
    told = info.attachment
    with st.container(border=True), st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        where = told.targets_file or f"{len(told.targets)} engines"
        since = format.clock(info.at_unix_s, session.tz())
        facts = f"{KINDS.get(told.kind, told.kind)}, {where}, attached by {info.who} at {since}"
        state, word = ("attention", info.problem) if info.problem else ("ok", "Looked at")
        st.html(cards.health(told.name, word, state, (facts,), info.at_unix_s), width="stretch")
        st.button(
            "Detach",
            key=f"detach-{told.name}",
            on_click=_detach,
            args=(hub, told.name),
            disabled=bool(why_not),
            help="Stop looking. Its history stays, and its engines do not notice.",
        )
        _permissions(hub, info, why_not)


def _permissions(hub: Hub, info: AttachedInfo, why_not: str) -> None:
    """One switch for each thing that could be done to it."""
    name, by = info.attachment.name, {each.capability: each for each in info.allowed}
    for each in info.can:
        if each == Capability.OBSERVE:
            continue
        given, key = by.get(each), f"allow-{name}-{each}"
        since = f"Allowed by {given.who} at {format.clock(given.at_unix_s, session.tz())}." if given else "Not allowed."
        st.session_state[key] = given is not None
        does = ACTS.get(each, each.value)
        st.toggle(does, key=key, on_change=_allow, args=(hub, name, each, key), disabled=bool(why_not), help=since)


def _allow(hub: Hub, name: str, capability: Capability, key: str) -> None:
    client, on = hub.client(session.token(hub)), bool(st.session_state[key])
    said = _tried(lambda: client.allow(name, capability) if on else client.forbid(name, capability))
    words = f"{name} may {'now' if on else 'no longer'} be changed so: {capability}."
    st.session_state["attach_answer"] = said if isinstance(said, ControlError) else words


def _form(hub: Hub, why_not: str) -> None:
    left, middle, right = st.columns(3, gap="medium")
    name = left.text_input("Name", key="attach_name", placeholder="prod-vllm", max_chars=40)
    kind = middle.selectbox("Engine", list(KINDS), key="attach_kind", format_func=KINDS.__getitem__)
    every_s = right.number_input("Seconds between looks", 0.5, 60.0, 2.0, 0.5, key="attach_every")
    example = "prefill=http://10.0.0.1:8000\ndecode=http://10.0.0.2:8000"
    targets = st.text_area("Targets", key="attach_targets", help=TARGETS_HELP, placeholder=example)
    left, middle, right = st.columns(3, gap="medium")
    model = left.text_input("Model", key="attach_model", help="A name of data/models.toml: its shape gives exact work.")
    device = middle.text_input("Device", key="attach_device", help="A name of data/devices.toml: its peaks.")
    num = right.number_input("Devices per engine", 1, 1024, 1, key="attach_num", help="Tensor parallel size.")
    told = Attachment(
        name=name.strip(),
        kind=kind,
        targets=tuple(line.strip() for line in targets.splitlines() if line.strip()),
        model=model.strip(),
        device=device.strip(),
        devices_per_worker=int(num),
        every_s=float(every_s),
    )
    with st.container(horizontal=True, gap="small"):
        off = bool(why_not)
        st.button("Look first", key="attach_look", on_click=_look, args=(hub, told), disabled=off)
        st.button("Attach", key="attach_do", type="primary", on_click=_attach, args=(hub, told), disabled=off)
    _answer()


def _look(hub: Hub, told: Attachment) -> None:
    st.session_state["attach_answer"] = _tried(lambda: hub.client(session.token(hub)).survey(told))


def _attach(hub: Hub, told: Attachment) -> None:
    done = _tried(lambda: hub.client(session.token(hub)).attach(told))
    st.session_state["attach_answer"] = done


def _detach(hub: Hub, name: str) -> None:
    def detach() -> str:
        hub.client(session.token(hub)).detach(name)
        return f"{name} is detached."

    st.session_state["attach_answer"] = _tried(detach)


def _tried(act: Callable[[], Said]) -> Said | ControlError:
    try:
        return act()
    except ControlError as error:
        return error


def _answer() -> None:
    """What came of the last press."""
    said = st.session_state.get("attach_answer")
    if isinstance(said, ControlError):
        bound = f" Allowed: {said.bound}." if said.bound else ""
        st.html(cards.banner(f"{said.detail}.{bound}", "broken", alert=True))
    elif isinstance(said, Survey):
        _survey(said)
    elif isinstance(said, AttachedInfo):
        st.html(cards.banner(f"{said.attachment.name} is attached; choose it under Fleet."))
    elif said:
        st.html(cards.banner(str(said)))


def _survey(found: Survey) -> None:
    rows = [
        {
            "Worker": each.worker_id,
            "Role": each.role,
            "Engine": each.version,
            "Model": each.model,
            "Series": each.num_found,
            "Missing": "; ".join(
                f"{one.series} is {one.state}" + (f": {one.remedy}" if one.remedy else "") for one in each.missing
            ),
            "Problem": each.problem,
        }
        for each in found.engines
    ]
    st.dataframe(rows, hide_index=True, width="stretch")
    for note in found.notes:
        st.caption(note)
    st.caption(f"{found.num_reachable} of {len(found.engines)} engines answer.")
