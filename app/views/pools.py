"""Pools & routing: desired beside observed, and every change: resize, flip, drain, undrain, routing settings, weights.

The controls are drawn from a pinned version of the desired state (`session.form`) and stand outside what refreshes.
"""

from __future__ import annotations

from dataclasses import Field, fields

import streamlit as st

from app import actions, cards, foreign, format, lines, push, session, tables, words
from app.session import Form
from app.source import Hub
from app.views.detail import Chosen, utilization
from control.errors import ControlError
from control.types.commands import Action, Desired, Verb
from control.types.fleet import Capability, FleetSnapshot
from control.types.routing import RoutingPolicy, WhatIfRouting
from control.types.workers import Role, WorkerStatus

MANY_WORKERS = 12
ROLE_CHOICES: tuple[Role, ...] = (Role.PREFILL, Role.DECODE, Role.MIXED)


def page(hub: Hub, snapshot: FleetSnapshot) -> None:
    """Pools as they are, then the controls, with running commands beside them."""
    push.slot(hub, "health")
    push.live(_pools, "pools")(hub)
    if not snapshot.workers:
        missing = f"There is nothing to resize until there is a worker. {snapshot.health_text}"
        st.html(cards.empty("No workers yet", missing))
        return
    form = session.form(snapshot)
    why_not = session.can_act(hub, snapshot)
    left, right = st.columns([3, 2], gap="medium")
    with left:
        push.live(_moved, "moved")(hub)
        st.html(cards.banner(why_not) if why_not else "<span></span>")  # always one element: no control changes place
        _controls(hub, snapshot, form, why_not)
    with right:
        st.html(cards.heading_small("Commands"))
        with st.container():  # however many buttons: what follows keeps its place
            actions.undo_buttons(hub, why_not)
        push.live(actions.progress, "progress")(hub)
    push.live(utilization, "lines")(hub, Chosen(), None)
    actions.show_pending(hub)


def _controls(hub: Hub, snapshot: FleetSnapshot, form: Form, why_not: str) -> None:
    """Only what the fleet can do and we may is offered; why the rest is not stands below."""
    resize = _resize_pools if foreign.sized(snapshot) else _resize
    offered = [
        (title, draw)
        for title, needs, draw in (
            ("Resize pools", Capability.RESIZE, resize),
            ("Flip a worker", Capability.FLIP, _flip),
            ("Drain", Capability.DRAIN, _drain),
            ("Routing", Capability.ROUTE, _routing),
            ("Weights", Capability.ROUTE, _weights),
        )
        if needs in snapshot.capabilities
    ]
    if offered:
        for tab, (_, draw) in zip(st.tabs([title for title, _ in offered]), offered, strict=True):
            with tab:
                draw(hub, snapshot, form, why_not)
    else:
        st.html(cards.empty("This fleet is observed only", "Nothing of it can be changed from here now."))
    if refused := foreign.refused_rows(snapshot):
        st.html(cards.legend([], "Not offered, and what allows it") + cards.table(("", ""), refused, "Not offered"))


# --- live parts ------------------------------------------------------------


def _pools(hub: Hub) -> None:
    look = hub.look()
    snapshot = look.snapshot
    if snapshot is None:
        return
    if snapshot.pools:
        st.html(hub.memo("pools", look.reading, lambda: pool_table(snapshot)))


def pool_table(snapshot: FleetSnapshot) -> str:
    """Desired beside observed, how hard beside how full. Pure."""
    tagged = "simulated" if snapshot.simulated else "derived"
    head = ("Pool", "Desired", "Ready", "Changing", "Prefill compute", "Decode bandwidth", "Load", "Headroom")
    rows = []
    for pool in snapshot.pools:
        prefill = format.percent(pool.prefill.wall_compute if pool.prefill else None)
        decode = format.percent(pool.decode.wall_bandwidth if pool.decode else None)
        matched = pool.num_ready == pool.num_desired and not pool.num_other
        changing = "–" if matched or pool.num_desired is None else format.count(pool.num_other)
        load = (
            f"{words.load(pool)} {'queued' if pool.role == 'prefill' else 'of KV'}"
            if pool.load is not None
            else format.NA
        )
        texts = (
            format.count(pool.num_desired),
            format.NA if pool.num_desired is None else str(pool.num_ready),
            changing,
            prefill,
            decode,
            load,
            format.rate(pool.headroom_rps),
        )
        rows.append((cards.Cell(cards.role(pool.role), html=True), *(cards.Cell(text, num=True) for text in texts)))
    note = cards.note(f"Utilization is wall, {lines.peak_words(snapshot)}", tagged)
    return cards.table(head, rows, "Pools: desired beside observed") + note + foreign.rival_words(snapshot)


def _moved(hub: Hub) -> None:
    """Somebody else changed the fleet, or what is desired of it, since these controls were drawn."""
    snapshot = hub.look().snapshot
    form: Form | None = st.session_state.get("form")
    text = "" if snapshot is None or form is None else moved_words(hub, snapshot, form)
    if not text:
        st.html("<span></span>")
        return
    st.html(cards.banner(text))
    if st.button("Look again", on_click=session.look_again, key="look_again"):
        st.rerun()


def moved_words(hub: Hub, snapshot: FleetSnapshot, form: Form) -> str:
    """What has moved, and by whom; "" when these controls still say what holds."""
    now = snapshot.desired
    if now.version > form.version:
        moved = words.changed_since(form.version, hub.commands())
        who = "; ".join(f"{each.who}: {words.action(each.action)}" for each in moved)
        who = who or "its command is not listed any more"
        return f"These controls show version {form.version}; the desired state is at version {now.version} ({who})."
    shown = form.desired
    if not snapshot.is_attached or snapshot.active_command_ids or _stands(shown, now):
        return ""
    drawn, sizes = (words.pool_sizes(tables.pool_counts(each)) for each in (shown, now))
    told = f"from {drawn} to {sizes}" if drawn != sizes else f"{sizes} as before, other workers among them"
    return f"It has changed without a command of ours since these controls were drawn: {told}. Its owner leads."


def _stands(shown: Desired, now: Desired) -> bool:
    """Nobody but us has changed it. Of pools with sizes that is their sizes: workers come and go with them."""
    if now.pools:
        return now.pools == shown.pools
    return (now.roles, now.drained) == (shown.roles, shown.drained)


# --- resize, flip, drain ------------------------------------------------------------


def _resize(hub: Hub, snapshot: FleetSnapshot, form: Form, why_not: str) -> None:
    """One number per role, with - and +, and what they add up to."""
    wanted: dict[Role, int] = {}
    for column, role in zip(st.columns(3), ROLE_CHOICES, strict=True):
        wanted[role] = column.number_input(
            f"{role.capitalize()} workers",
            min_value=0,
            max_value=len(snapshot.workers),
            value=min(form.desired.pool_size(role), len(snapshot.workers)),
            key=f"size_{role}_{form.key}",
            disabled=bool(why_not),
            help=f"Desired now: {form.desired.pool_size(role)}",
        )
    fits, text = tables.sizes_words(wanted.values(), len(form.desired.roles) or len(snapshot.workers))
    changed = any(wanted[role] != form.desired.pool_size(role) for role in ROLE_CHOICES)
    st.caption(text)
    action = Action(
        verb=Verb.RESIZE, prefill=wanted[Role.PREFILL], decode=wanted[Role.DECODE], mixed=wanted[Role.MIXED]
    )
    _ask_button(
        "Preview resize",
        hub,
        action,
        why_not or ("" if changed else "Change a number first.") or ("" if fits else text),
    )


def _resize_pools(hub: Hub, snapshot: FleetSnapshot, form: Form, why_not: str) -> None:
    """Pools that have a size and no fixed workers: as many as may be asked for."""
    pools = foreign.sized(snapshot)
    wanted: dict[Role, int] = {}
    for column, pool in zip(st.columns(max(3, len(pools))), pools, strict=False):
        now, most = form.desired.pool_size(pool.role), pool.most_workers or 1
        wanted[pool.role] = column.number_input(
            f"{pool.role.capitalize()} workers",
            min_value=1,
            max_value=max(most, now),
            value=max(1, now),
            key=f"pool_{pool.role}_{form.key}_{now}",
            disabled=bool(why_not or pool.rival),
            help=pool.rival or f"Set now: {now}. Up to {most} may be asked for.",
        )
    changed = {role: size for role, size in wanted.items() if size != form.desired.pool_size(role)}
    st.caption("The fleet's own system starts and ends workers; the command is done when they are seen.")
    asked = {role: changed.get(role) for role in ROLE_CHOICES}  # a pool that is not named keeps its size
    action = Action(verb=Verb.RESIZE, prefill=asked[Role.PREFILL], decode=asked[Role.DECODE], mixed=asked[Role.MIXED])
    _ask_button("Preview resize", hub, action, why_not or ("" if changed else "Change a number first."))


def _ask_button(label: str, hub: Hub, action: Action, why_not: str) -> None:
    st.button(
        label,
        type="primary",
        key=f"ask_{label}",
        on_click=actions.ask,
        args=(hub, action),
        disabled=bool(why_not),
        help=why_not or "Shows the steps first; nothing changes before you apply them.",
    )


def worker_words(worker: WorkerStatus) -> str:
    if worker.num_running is None or worker.num_waiting is None:
        return f"{worker.worker_id} · {worker.role}, {worker.state}, its work is not exported"
    work = f"{worker.num_running} running, {worker.num_waiting} waiting"
    return f"{worker.worker_id} · {worker.role}, {worker.state}, {work}"


def _flip(hub: Hub, snapshot: FleetSnapshot, form: Form, why_not: str) -> None:
    named = {worker.worker_id: worker_words(worker) for worker in snapshot.workers}
    left, right = st.columns([2, 1])
    worker_id = left.selectbox(
        "Worker", list(named), key="flip_worker", format_func=lambda each: named.get(each, each), disabled=bool(why_not)
    )
    now = form.desired.roles.get(worker_id or "")
    choices = [role for role in ROLE_CHOICES if role != now]
    role = right.selectbox("New role", choices, key=f"flip_role_{now}", format_func=str, disabled=bool(why_not))
    st.caption("A flip changes the role without reloading the model; running work is finished first.")
    _ask_button("Preview flip", hub, Action(verb=Verb.FLIP, worker_id=worker_id, role=role), why_not)


def _drain(hub: Hub, snapshot: FleetSnapshot, form: Form, why_not: str) -> None:
    named = {worker.worker_id: worker_words(worker) for worker in snapshot.workers}
    worker_id = st.selectbox(
        "Worker to drain or undrain",
        list(named),
        key="drain_worker",
        format_func=lambda each: named.get(each, each),
        disabled=bool(why_not),
    )
    drained = (worker_id or "") in form.desired.drained
    if drained:
        st.caption(f"{worker_id} is drained by order: it admits nothing.")
        _ask_button("Preview undrain", hub, Action(verb=Verb.UNDRAIN, worker_id=worker_id), why_not)
    else:
        st.caption("Draining admits nothing new and finishes what runs.")
        _ask_button("Preview drain", hub, Action(verb=Verb.DRAIN, worker_id=worker_id), why_not)


# --- routing ------------------------------------------------------------


def _routing(hub: Hub, snapshot: FleetSnapshot, form: Form, why_not: str) -> None:
    """One slider per setting, from the policy's own fields, units and help."""
    given = {each.name: _setting(each, form, why_not) for each in fields(RoutingPolicy)}
    changes = {name: value for name, value in given.items() if value != getattr(form.desired.policy, name)}
    unchanged = "" if changes else "Move a slider first."
    with st.container(horizontal=True):
        st.button(
            "Try on the last hour",
            on_click=_try_routing,
            args=(hub, changes),
            disabled=bool(unchanged),
            help=unchanged or "How the last hour's requests would have been routed. Nothing changes.",
        )
        _ask_button("Preview routing", hub, Action(verb=Verb.SET_ROUTING, policy=changes), why_not or unchanged)
    found: tuple[dict[str, float | int], WhatIfRouting | str] | None = st.session_state.get("what_if")
    if found is not None and found[0] == changes:
        st.html(what_if_words(found[1]))


def _setting(field: Field[object], form: Form, why_not: str) -> float | int:
    """A fraction slides in steps of 0.05 (or 1%); a count from 0 up to well past its value."""
    current = getattr(form.desired.policy, field.name)
    unit = str(field.metadata.get("unit", ""))
    label = words.FIELD_WORDS.get(field.name, field.name)
    key, tip, off = f"set_{field.name}_{form.key}", str(field.metadata.get("help", "")), bool(why_not)
    if unit == "fraction":
        given = st.slider(label, 0.0, 1.0, float(current), 0.05, format="percent", key=key, help=tip, disabled=off)
        return float(given)
    top, step = (64, 1) if unit == "devices" else (4096, 8)
    now, most = int(current), max(top, int(current))
    return int(st.slider(f"{label} ({unit})", 0, most, now, step, key=key, help=tip, disabled=off))


def _try_routing(hub: Hub, changes: dict[str, float | int]) -> None:
    try:
        found: WhatIfRouting | str = hub.client(session.token(hub)).what_if_routing(changes)
    except ControlError as error:
        found = str(error)
    st.session_state["what_if"] = (changes, found)


def what_if_words(found: WhatIfRouting | str) -> str:
    """Requests per rule, before and after. Pure."""
    if isinstance(found, str):
        return cards.banner(f"The plane could not tell: {found}", "broken", alert=True)
    if not found.num_requests:
        return cards.empty("No request in the last hour", "There is nothing to try these settings on.")
    rows = [
        (
            cards.Cell(words.RULE_WORDS.get(rule, rule)),
            cards.Cell(format.count(before), num=True),
            cards.Cell(format.count(after), num=True),
            cards.Cell(f"{difference:+,}" if difference else "–", num=True),
        )
        for rule, before, after, difference in tables.rule_changes(found.before, found.after)
    ]
    moved, total = format.count(found.num_changed), format.count(found.num_requests)
    note = cards.note(f"{moved} of {total} requests of the last hour would go elsewhere.", found.provenance, found.note)
    return note + cards.table(("Rule", "As decided", "With these settings", "Difference"), rows, "Routing what-if")


def _weights(hub: Hub, snapshot: FleetSnapshot, form: Form, why_not: str) -> None:
    """A worker of weight 0 gets nothing new; 2 gets twice its share."""
    workers = [worker.worker_id for worker in snapshot.workers]
    current = {worker_id: float(form.desired.weights.get(worker_id, 1.0)) for worker_id in workers}
    if len(workers) <= MANY_WORKERS:
        given = _weight_inputs(current, form, why_not)
    else:
        given = _weight_table(current, snapshot, form, why_not)
    changes = {worker_id: weight for worker_id, weight in given.items() if weight != current[worker_id]}
    st.caption("1 is the normal share, 0 gets nothing new, 2 gets twice the share.")
    _ask_button(
        "Preview weights",
        hub,
        Action(verb=Verb.SET_ROUTING, weights=changes),
        why_not or ("" if changes else "Change a weight first."),
    )


def _weight_inputs(current: dict[str, float], form: Form, why_not: str) -> dict[str, float]:
    columns = st.columns(min(4, len(current)))
    return {
        worker_id: float(
            columns[index % len(columns)].number_input(
                f"Weight of {worker_id}",
                0.0,
                100.0,
                weight,
                0.1,
                format="%.2f",
                key=f"weight_{worker_id}_{form.key}",
                disabled=bool(why_not),
            )
        )
        for index, (worker_id, weight) in enumerate(current.items())
    }


def _weight_table(current: dict[str, float], snapshot: FleetSnapshot, form: Form, why_not: str) -> dict[str, float]:
    edited = st.data_editor(
        tables.weight_rows(snapshot, current),
        hide_index=True,
        height=320,
        disabled=True if why_not else ["worker", "role"],
        key=f"weights_{form.key}",
        column_config={
            "worker": "Worker",
            "role": "Role",
            "weight": st.column_config.NumberColumn("Weight", min_value=0.0, max_value=100.0, step=0.1, required=True),
        },
    )
    return dict(zip(edited["worker"], (float(each) for each in edited["weight"]), strict=True))
