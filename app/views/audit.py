"""Audit log: who did what, when, why, from which version, with which effect; and its undo.

The list stands still until somebody asks again. Filters and the chosen command live in the URL.
"""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from app import actions, cards, format, session, tables, url, words
from app.source import Hub
from control.errors import ControlError
from control.types.commands import Command, CommandState, Verb
from control.types.events import EventKind
from control.types.fleet import FleetSnapshot

PAGE = 100
NUM_GRANTS = 20
GRANTS: tuple[EventKind, ...] = ("permission",)


def page(hub: Hub, snapshot: FleetSnapshot) -> None:
    """Filters, the list, one command."""
    session.form(snapshot)
    if snapshot.is_attached:
        _permissions(hub)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        verbs = {"any": "Any", **{str(each): str(each) for each in Verb}}
        verb = url.select("Action", verbs, name="verb", default="any", width=180)
        states = {"any": "Any", **{str(each): str(each) for each in CommandState}}
        state = url.select("State", states, name="state", default="any", width=180)
        who = url.text("Who", name="who", width=180, placeholder="anybody")
        st.button("Read again", help="The list does not refresh by itself.")
    try:
        found = _read(hub, st.session_state.get("audit_pages", 1))
    except ControlError as error:
        st.html(cards.banner(f"The commands did not come: {error}", "broken", alert=True))
        return
    shown = matching(found, verb, state, who)
    if not shown:
        text = "Nobody has changed anything yet." if not found else "No command matches these filters."
        st.html(cards.empty("No command", text))
        return
    chosen = _list(shown)
    if len(found) == PAGE * st.session_state.get("audit_pages", 1):
        st.button("Show older commands", on_click=_older)
    _one(hub, snapshot, chosen or _from_url(shown) or shown[0])
    actions.show_pending(hub)


def _permissions(hub: Hub) -> None:
    """Who allowed what of a fleet that is not ours."""
    try:
        found = hub.client(session.token(hub)).fleet_events(0.0, kinds=GRANTS, limit=NUM_GRANTS)
    except ControlError as error:
        st.html(cards.banner(f"Its permissions did not come: {error}", "broken", alert=True))
        return
    if found:
        rows = [(format.moment(each.at_unix_s, session.tz()), words.sentence(each.reason)) for each in found]
        st.html(
            cards.heading_small("Permissions")
            + cards.table(
                ("At", "What"),
                [tuple(map(cards.Cell, row)) for row in rows],
                "Who attached this fleet, and allowed or took back what, newest first",
            )
        )


def _older() -> None:
    st.session_state["audit_pages"] = st.session_state.get("audit_pages", 1) + 1


def _read(hub: Hub, pages: int) -> list[Command]:
    client = hub.client(session.token(hub))
    found: list[Command] = []
    for _ in range(pages):
        more = client.commands(PAGE, found[-1].command_id if found else None)
        found += more
        if len(more) < PAGE:
            break
    return found


def matching(commands: Sequence[Command], verb: str, state: str, who: str) -> list[Command]:
    """The commands that pass all filters. Pure."""
    return [
        each
        for each in commands
        if verb in ("any", each.action.verb)
        and state in ("any", each.state)
        and who.strip().lower() in each.who.lower()
    ]


def _from_url(commands: Sequence[Command]) -> Command | None:
    wanted = st.query_params.get("command", "")
    return next((each for each in commands if str(each.command_id) == wanted), None)


def _list(commands: Sequence[Command]) -> Command | None:
    column = st.column_config
    event = st.dataframe(
        tables.command_rows(commands, session.tz()),
        hide_index=True,
        height=tables.table_height(len(commands), 12),
        key="audit_table",
        on_select="rerun",
        selection_mode="single-row",
        alt="Commands, newest first, with who, why, state, version and result. Select a row to see its steps.",
        column_config={
            "id": column.NumberColumn("Id", width=52),
            "at": column.TextColumn("At", width=150),
            "who": column.TextColumn("Who", width=110),
            "action": column.TextColumn("Action", width=240),
            "why": column.TextColumn("Why", width=200),
            "state": column.TextColumn("State", width=90),
            "version": column.TextColumn("Version", width=80),
            "took": column.TextColumn("Took", width=80),
            "result": column.TextColumn("Result", width=320),
        },
    )
    rows = event.selection.rows
    if rows and rows[0] < len(commands):
        st.query_params["command"] = str(commands[rows[0]].command_id)
        return commands[rows[0]]
    return None


def _one(hub: Hub, snapshot: FleetSnapshot, command: Command) -> None:
    tz = session.tz()
    left, right = st.columns([3, 2], gap="medium")
    with left:
        st.html(cards.heading_small(f"Command {command.command_id}: {words.action(command.action)}"))
        steps = [(format.clock(step.at_unix_s, tz), step.state, step.text) for step in command.steps]
        st.html(cards.steps(steps, "Steps") if steps else '<div class="pl pl-muted">No step was needed.</div>')
    with right:
        st.html(facts(command, format.moment(command.created_unix_s, tz), format.moment(command.updated_unix_s, tz)))
        if command.can_undo and command.undone_by is None:
            actions.undo_button(hub, command, session.can_act(hub, snapshot))


def facts(command: Command, created: str, updated: str) -> str:
    """Who, why, from which version, with which effect. Pure."""
    related = []
    if command.undo_of is not None:
        related.append(f"undoes command {command.undo_of}")
    if command.undone_by is not None:
        related.append(f"undone by command {command.undone_by}")
    pairs = [
        ("State", str(command.state)),
        ("Who", command.who),
        ("Why", command.why or "not given"),
        ("Asked, last change", f"{created}, {updated}"),
        ("Version", f"drawn from {command.base_version}, made {command.version_after}"),
        ("Result", command.result or "–"),
        ("Related", ", ".join(related) or "–"),
    ]
    if command.desired_before is not None and command.desired_after is not None:
        before, after = tables.pool_counts(command.desired_before), tables.pool_counts(command.desired_after)
        pairs.insert(5, ("Desired pools", f"{words.pool_sizes(before)}  →  {words.pool_sizes(after)}"))
    rows = [(cards.Cell(name), cards.Cell(text)) for name, text in pairs]
    return cards.table(("", ""), rows, f"Facts about command {command.command_id}")
