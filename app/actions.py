"""From a press to a recorded command: preview, the typed word, why, submit; stale forms; undo.

Nothing is decided here: the plane previews, refuses, records and carries out. This module asks, shows and passes
on, and never repeats a submission by itself. Dialogs open from the page body, by `on_click`.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from datetime import tzinfo
from html import escape

import streamlit as st

from app import cards, format, frames, session, words
from app.session import Form
from app.source import Hub
from control.errors import ControlError, StaleVersion
from control.stories import departure_words
from control.types.commands import Action, Command, CommandRequest, Preview, Verb

ENDED = ("done", "failed", "superseded")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """One action between its press and its submission."""

    request: CommandRequest
    preview: Preview | None = None
    error: str = ""
    stale: tuple[Command, ...] | None = None  # what moved the desired state since the form was drawn


def ask(hub: Hub, action: Action) -> None:
    """`on_click` of every acting button: get the preview; the dialog opens with the page's next draw."""
    form: Form | None = st.session_state.get("form")
    request = CommandRequest(
        action=action,
        base_version=form.version if form else None,
        idempotency_key=f"console-{uuid.uuid4().hex}",
    )
    pending = Pending(request=request)
    try:
        preview = hub.client(session.token(hub)).preview(request)
        moved = preview.base_version != (request.base_version or preview.base_version)
        pending = replace(pending, preview=preview, stale=_moved_by(hub, request) if moved else None)
    except StaleVersion as error:
        pending = replace(pending, error=str(error), stale=_moved_by(hub, request))
    except ControlError as error:
        pending = replace(pending, error=str(error))
    st.session_state["pending"] = pending


def show_pending(hub: Hub) -> None:
    """Open the dialog of the action that waits for a yes; call it once, from the page body."""
    pending: Pending | None = st.session_state.get("pending")
    if pending is not None:
        st.dialog(_title(pending), width="medium", on_dismiss=_forget)(_dialog)(hub)


def _forget() -> None:
    st.session_state.pop("pending", None)


def _title(pending: Pending) -> str:
    text = words.action(pending.request.action)
    return text[:1].upper() + text[1:]


def _moved_by(hub: Hub, request: CommandRequest) -> tuple[Command, ...]:
    try:
        newest = hub.client(session.token(hub)).commands(20)
    except ControlError:
        return ()
    return tuple(words.changed_since(request.base_version or 0, newest))


def _dialog(hub: Hub) -> None:
    pending: Pending | None = st.session_state.get("pending")
    if pending is None:
        st.rerun()
    if pending.stale is not None:
        _stale(pending)
    elif pending.error:
        st.html(cards.banner(pending.error, "broken", alert=True))
        if st.button("Close"):
            _forget()
            st.rerun()
    elif pending.preview is not None:
        _preview(hub, pending, pending.preview)


def _stale(pending: Pending) -> None:
    """What changed, by whom, and the offer to look again. Nothing is retried."""
    version = pending.request.base_version
    st.html(
        cards.banner(
            f"Not applied: the desired state has moved since this form was drawn (version {version}).",
            "attention",
            alert=True,
        )
    )
    for command in pending.stale or ():
        what = f"{command.who}: {words.action(command.action)} (version {command.version_after})"
        st.markdown(f"- {what}" + (f": {command.why}" if command.why else ""))
    if st.button("Look again", type="primary"):
        _forget()
        session.look_again()
        st.rerun()


def _preview(hub: Hub, pending: Pending, preview: Preview) -> None:
    st.html(_summary(preview))
    if preview.refused:
        st.html(cards.banner(f"The plane would refuse this: {preview.refused}", "broken", alert=True))
        if st.button("Close"):
            _forget()
            st.rerun()
        return
    for warning in preview.warnings:
        st.html(cards.banner(warning))
    why = st.text_input("Why (optional, kept in the audit log)", key="why", max_chars=500)
    typed = ""
    if preview.needs_confirmation:
        typed = st.text_input(f"Type {preview.needs_confirmation} to confirm", key="confirmation")
    left, right = st.columns(2)
    missing = bool(preview.needs_confirmation) and typed.strip() != preview.needs_confirmation
    if right.button("Apply", type="primary", width="stretch", disabled=missing):
        _submit(hub, pending, why, typed.strip())
    if left.button("Cancel", width="stretch"):
        _forget()
        st.rerun()


def _summary(preview: Preview) -> str:
    before, after = words.pool_sizes(preview.pools_before), words.pool_sizes(preview.pools_after)
    facts = [("Pools", before if before == after else f"{before}  →  {after}")]
    if preview.expected_s is not None:
        facts.append(("Takes about", f"{format.duration(preview.expected_s)} (assumed from the running work)"))
    if preview.effect:
        facts.append(("Effect", f"{preview.effect} ({preview.effect_provenance})"))
    rows = [(cards.Cell(name), cards.Cell(text)) for name, text in facts]
    steps = [(f"{number}.", each.verb, each.text) for number, each in enumerate(preview.steps, start=1)]
    listed = (
        cards.steps(steps, "Steps the plane will take")
        if steps
        else '<div class="pl pl-muted">Nothing would change.</div>'
    )
    return cards.table(("", ""), rows, "What this does") + cards.heading_small(f"Steps ({len(steps)})") + listed


def _submit(hub: Hub, pending: Pending, why: str, typed: str) -> None:
    request = replace(pending.request, why=why, confirmation=typed)
    try:
        command = hub.client(session.token(hub)).submit(request)
    except StaleVersion as error:
        st.session_state["pending"] = replace(pending, error=str(error), stale=_moved_by(hub, request))
        st.rerun(scope="fragment")
    except ControlError as error:
        st.html(cards.banner(f"Not accepted: {error}", "broken", alert=True))
        return
    hub.learn(command)
    watching = st.session_state.get("watching", ())
    if command.command_id not in watching:  # a press may be told twice; it is one command, by its key
        st.session_state["watching"] = (*watching, command.command_id)
    if command.desired_after is not None:
        st.session_state["form"] = Form(
            version=command.version_after, desired=command.desired_after, fleet_id=command.fleet_id
        )
    else:
        session.look_again()
    for name in ("pending", "why", "confirmation", "what_if"):
        st.session_state.pop(name, None)
    st.rerun()


def undoable(hub: Hub) -> list[Command]:
    return [each for each in hub.commands() if each.can_undo and each.undone_by is None][:3]


def undo_buttons(hub: Hub, why_not: str) -> None:
    """The youngest commands that can be undone."""
    for command in undoable(hub):
        undo_button(hub, command, why_not)


def undo_button(hub: Hub, command: Command, why_not: str) -> None:
    """Undo is a command like any other, with its preview."""
    st.button(
        f"Undo command {command.command_id} ({words.action(command.action)})",
        key=f"undo_{command.command_id}",
        on_click=ask,
        args=(hub, Action(verb=Verb.UNDO, command_id=command.command_id)),
        disabled=bool(why_not),
        help=why_not or "Restores the desired state from before this command; a preview comes first.",
    )


def progress(hub: Hub, limit: int = 4) -> None:
    """Commands with their steps, as they happen; draw it from a fragment. Ends of our own redraw the page once."""
    commands = hub.commands()
    if not commands:
        st.html(cards.empty("No command yet", "What you apply appears here at once, then step by step."))
    tz = session.tz()
    st.html("".join(_journal(each, tz) for each in commands[:limit]) or "<span></span>")
    watching = st.session_state.get("watching", ())
    ended = {each.command_id for each in commands if each.state in ENDED}
    if any(each in ended for each in watching):
        st.session_state["watching"] = tuple(each for each in watching if each not in ended)
        st.rerun()


def _journal(command: Command, tz: tzinfo) -> str:
    """One command as a card: what, who, state, steps, result."""
    steps = [(format.clock(step.at_unix_s, tz), step.state, step.text) for step in command.steps[-8:]]
    hidden = len(command.steps) - len(steps)
    more = (
        f'<div class="pl-muted" style="font-size:12px">{hidden} earlier steps are in the audit log</div>'
        if hidden
        else ""
    )
    told = {step.worker_id for step in command.steps if step.state == "moved"}
    leaving = "".join(
        cards.progress(f"{each.worker_id}: {departure_words(each)}", frames.gone_share(each))
        for each in command.departures
        if each.worker_id not in told
    )
    why = f" · {command.why}" if command.why else ""
    result = f'<div style="margin-top:6px;font-size:13px">{escape(command.result)}</div>' if command.result else ""
    title = escape(words.command(command))
    return (
        '<section class="pl pl-card" style="margin-bottom:8px">'
        f'<div class="pl-row pl-between"><span><b>{command.command_id}</b>&ensp;{title}</span>'
        f"{cards.state(command.state)}</div>"
        f'<div class="pl-muted" style="font-size:12px">{escape(command.who)}, '
        f"{format.clock(command.created_unix_s, tz)}{escape(why)}</div>"
        f"{cards.steps(steps, f'Steps of command {command.command_id}')}{leaving}{more}{result}</section>"
    )
