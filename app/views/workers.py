"""Workers: one row each, refreshed in place, and one worker's life: its roles, its deaths, whom it left and was told.

The table refreshes; choosing a worker stands outside it and lives in the URL.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import tzinfo
from typing import Any

import streamlit as st

from app import cards, charts, draw, estimates, foreign, format, frames, marks, push, session, tables, theme, url, words
from app.source import Hub
from app.views import not_known
from control.errors import ControlError
from control.types.commands import Command
from control.types.events import FleetEvent
from control.types.fleet import Capability, FleetSnapshot
from control.types.workers import PhaseUtilization, RoleInterval, WorkerStatus

RANGES: dict[str, int] = {"1h": 3600, "6h": 21_600, "24h": 86_400}
LEAST_LIFE_S = 300.0
NUM_ROWS = 14
RANGE_WORDS: dict[str, str] = {"1h": "1 hour", "6h": "6 hours", "24h": "24 hours"}


def page(hub: Hub, snapshot: FleetSnapshot) -> None:
    """The table, then one worker."""
    push.slot(hub, "health")
    push.live(_table, "workers")(hub)
    if not snapshot.workers:
        st.html(cards.empty("No workers yet", snapshot.health_text or "The fleet has not started a worker."))
        return
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        workers = [each.worker_id for each in snapshot.workers]
        worker_id = url.select("Worker", workers, name="worker", default=workers[0], width=280)
        chosen = url.segmented("Timeline", RANGE_WORDS, name="life", default="1h")
    st.fragment(_life, run_every=5.0)(hub, worker_id, RANGES[chosen])
    not_known.section(snapshot)


def _table(hub: Hub) -> None:
    look = hub.look()
    snapshot = look.snapshot
    if snapshot is None:
        return
    if not snapshot.workers:
        return
    tz = session.tz()
    rows = hub.memo(("workers", str(tz)), look.reading, lambda: tables.worker_rows(snapshot, tz))
    st.dataframe(
        rows,
        hide_index=True,
        height=tables.table_height(len(snapshot.workers), 14),
        placeholder=format.NA,
        key="worker_table",
        column_config=_columns(snapshot),
        alt="One row per worker: role, state, utilization of both kinds, KV, queue, version, host, device, restarts.",
    )
    source = "simulated" if snapshot.simulated else "derived"
    st.html(
        f'<div class="pl pl-muted" style="font-size:12px">Utilization is wall, over the last seconds '
        f"{cards.tag(source, left=True)} </div>"
    )


def _any(phases: Iterable[PhaseUtilization | None]) -> bool:
    return any(each is not None and each.wall_compute is not None for each in phases)


def _bar(title: str, color: str, width: int = 130, *, known: bool = True) -> Any:
    """A bar says nothing of what is unknown: a number does, by its placeholder."""
    if not known:
        return st.column_config.NumberColumn(title, width=width)
    return st.column_config.ProgressColumn(title, color=color, min_value=0, max_value=100, format="%.1f%%", width=width)


def _columns(snapshot: FleetSnapshot) -> dict[str, Any]:
    column = st.column_config
    troubled = any(each.reason for each in snapshot.workers)
    restarted = any(each.num_restarts for each in snapshot.workers)
    theirs = snapshot.is_attached  # what only our own workers tell has no column
    return {
        "worker": column.TextColumn("Worker", pinned=True, width=150 if theirs else 72),
        "role": column.TextColumn("Role", help="Role now, and → the desired one where they differ", width=84),
        "state": column.TextColumn("State", width=76),
        "since": column.TextColumn("Role since", width=76),
        "prefill": _bar("Prefill compute", theme.PREFILL, known=_any(each.prefill for each in snapshot.workers)),
        "decode": _bar("Decode bandwidth", theme.DECODE, known=_any(each.decode for each in snapshot.workers)),
        "kv": _bar("KV held", theme.MIXED, 104, known=any(each.kv_usage is not None for each in snapshot.workers)),
        "queued": None if theirs else column.NumberColumn("Queued tokens", format="localized", width=100),
        "waiting": column.NumberColumn("Waiting", width=60),
        "running": column.NumberColumn("Running", width=62),
        "leased": None
        if theirs
        else column.NumberColumn("Handoffs", help="Prefilled, not yet acknowledged by the decode worker", width=76),
        "weight": column.NumberColumn("Weight", width=56) if Capability.ROUTE in snapshot.capabilities else None,
        "why": column.TextColumn("Why not ready", width=220) if troubled else None,
        "restarts": None if theirs else column.NumberColumn("Restarts", width=70),
        "last_restart": column.TextColumn("Last restart", width=180) if restarted else None,
        "device": column.TextColumn("Device", width=140),
        "host": column.TextColumn("Host", width=110),
        "version": column.TextColumn("Version", width=70),
    }


def _life(hub: Hub, worker_id: str | None, range_s: int) -> None:
    """One worker: what it is now, and the roles it held."""
    snapshot = hub.look().snapshot
    if snapshot is None:
        return
    worker = next((each for each in snapshot.workers if each.worker_id == worker_id), None)
    if worker is None:
        st.html(cards.empty(f"{worker_id} is not in the fleet", "It left since this page was drawn."))
        return
    tz, now = session.tz(), snapshot.at_unix_s
    since = now - range_s
    try:
        found = hub.cached(("roles", range_s, int(now // 5)), 6.0, lambda plane: plane.roles(since, now))
        events = hub.events(since, now, worker_id)
    except ControlError as error:
        st.html(cards.banner(f"The history did not answer: {error}", "broken", alert=True))
        return
    own = [each for each in found if each.worker_id == worker_id]
    left, right = st.columns([3, 2], gap="medium")
    with left:
        commands = [each for each in hub.commands() if tables.concerns(each, worker.worker_id)]
        _timeline(own, events, commands, worker, since, now, tz)
    with right:
        told = foreign_facts(worker, snapshot) if snapshot.is_attached else own_facts(worker, now)
        st.html(facts(worker, told, tz))


def _timeline(
    own: list[RoleInterval],
    events: list[FleetEvent],
    commands: list[Command],
    worker: WorkerStatus,
    since: float,
    now: float,
    tz: tzinfo,
) -> None:
    if not own:
        st.html(cards.empty("No role recorded in this window", "The history holds no interval for this worker yet."))
        return
    first = min(each.start_unix_s for each in own)  # a young worker's life fills the axis
    since = max(since, min(first, now - LEAST_LIFE_S))
    away = frames.absences(events)
    told = [each for each in commands if each.created_unix_s >= since and not words.began(each)]
    data = {
        "live": frames.intervals(own, since, now, away),
        "span": frames.span(since, now, 0.0),
        **marks.marks(told, events, since, now),
    }
    draw.chart(
        charts.timeline(1),
        data,
        key="life_chart",
        alt=f"Roles that {worker.worker_id} held over time, when it was away, and what happened, as bars and rules.",
    )
    rows = tables.life_rows(own, events, away, told, now, tz)[:NUM_ROWS]
    st.html(cards.table(("From", "For", "What", "Story"), rows, f"Life of {worker.worker_id}"))


def facts(worker: WorkerStatus, pairs: Sequence[tuple[str, str]], tz: tzinfo) -> str:
    """Everything the row has no room for. Pure."""
    rows = [(cards.Cell(name), cards.Cell(text)) for name, text in pairs]
    return cards.table(
        (worker.worker_id, f"since {format.clock(worker.role_since_unix_s, tz)} {worker.role}"),
        rows,
        f"Facts about {worker.worker_id}",
    )


def own_facts(worker: WorkerStatus, now_unix_s: float) -> list[tuple[str, str]]:
    running = "idle" if worker.step_running_s is None else f"running for {format.duration(worker.step_running_s)}"
    last = f", last: {worker.last_restart_reason}" if worker.last_restart_reason else ""
    held, reserved = format.count(worker.kv_blocks_held), format.count(worker.kv_blocks_reserved)
    return [
        ("Why not ready", worker.reason or "–"),
        ("Restarts", f"{worker.num_restarts}{last}"),
        ("Up for", f"{format.duration(now_unix_s - worker.started_unix_s)}, epoch {worker.epoch}"),
        ("Heartbeat", f"{format.duration(worker.heartbeat_age_s)} ago; step {running}"),
        ("KV blocks", f"{held} held, {reserved} reserved of {format.count(worker.kv_blocks_total)}"),
        ("Measured by the device", _measured(worker)),
        ("Model", worker.model_id),
        ("Address", f"{worker.address} (pid {worker.pid} on {worker.hostname})"),
        ("Device", f"{worker.device}{' (simulated)' if worker.simulated else ''}"),
    ]


def foreign_facts(worker: WorkerStatus, snapshot: FleetSnapshot) -> list[tuple[str, str]]:
    """Of somebody else's engine: only what it says of itself; the rest has its state and remedy."""
    kv, running = foreign.unknown(snapshot, "kv", [worker.worker_id]), format.count(worker.num_running)
    held = f"{format.percent(worker.kv_usage)} held, as the engine says it"
    work = f"{running} running, {format.count(worker.num_waiting)} waiting"
    busy = foreign.unknown(snapshot, "running", [worker.worker_id])
    device = "not named" if worker.device in ("", "unknown") else worker.device
    return [
        ("Why not ready", worker.reason or "–"),
        ("Engine", worker.version or "it does not say its version"),
        ("Seen for", format.duration(snapshot.at_unix_s - worker.started_unix_s)),
        ("KV", held if worker.kv_usage is not None else f"n/a: {kv.words if kv else 'not said'}"),
        ("Requests", work if busy is None else f"n/a: {busy.words}"),
        *foreign.no_estimate(worker, snapshot),
        *estimates.pairs(worker.estimates),
        ("Measured by the device", _measured(worker, "no reading of its GPUs is attached (--gpu-metrics)")),
        ("Model", worker.model_id or "not said"),
        ("Address", worker.address),
        ("Device", f"{device}{' (simulated)' if worker.simulated else ''}"),
    ]


def _measured(worker: WorkerStatus, nothing: str = "this device answers no GPM counters") -> str:
    if worker.measured_tensor_active is None and worker.measured_dram_active is None:
        return f"n/a: {worker.device_note or nothing}"
    tensor, dram = format.percent(worker.measured_tensor_active), format.percent(worker.measured_dram_active)
    words = f"tensor active {tensor}, DRAM active {dram}"
    return f"{words} ({worker.device_note})" if worker.device_note else words
