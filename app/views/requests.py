"""Requests: a heatmap of their latencies, what is different about the slow ones, the list, and one request's life.

A click on a cell of the heatmap lists the requests in it. A live heatmap follows the traffic; the list and what is
different stand still until somebody asks again. Range, filters, cell and the chosen request live in the URL.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import tzinfo

import streamlit as st

from app import cards, differences, draw, foreign, format, heat, session, tables, url, words
from app.heat import HeatCell
from app.plane import Plane
from app.source import Hub
from app.views.request import waterfall
from control.errors import ControlError
from control.types.fleet import FleetSnapshot
from control.types.latencies import Heatmap
from control.types.requests import LatencyKind, RequestFilters, RequestRecord

WINDOWS: dict[str, int] = {"15m": 900, "1h": 3600, "6h": 21_600, "24h": 86_400, "7d": 604_800}
WINDOW_WORDS: dict[str, str] = {
    "15m": "15 min",
    "1h": "1 hour",
    "6h": "6 hours",
    "24h": "24 hours",
    "7d": "7 days",
}
METRICS: dict[str, str] = {"ttft": "First token", "e2e": "Whole request", "gap": "Largest gap"}
KINDS: dict[str, LatencyKind] = {"ttft": "ttft", "e2e": "e2e", "gap": "gap"}
OUTCOMES: dict[str, str] = {"any": "Any", "good": "Good", "not-good": "Not good", "failed": "Failed or refused"}
MOVED_WORDS: dict[str, str] = {"any": "Any", "yes": "Went on elsewhere", "no": "Stayed on its workers"}
CLASS_WORDS: dict[str, str] = {"any": "Any", "interactive": "Interactive", "batch": "Batch"}
LIMIT = 200
HEATMAP_PX = 260
LIVE_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What the controls say. `cell` None: all of the range."""

    since_unix_s: float
    until_unix_s: float
    is_past: bool
    order: str
    metric: LatencyKind
    filters: RequestFilters
    cell: HeatCell | None


def page(hub: Hub, snapshot: FleetSnapshot) -> None:
    """Controls, heatmap beside what is different, the list, one request."""
    client = hub.client(session.token(hub))
    if foreign.is_unseen(snapshot):
        if not _has_any(hub, client):
            st.html(cards.empty("No request of this fleet is seen", foreign.unseen_words(snapshot)))
            return
        st.html(cards.banner(foreign.unseen_words(snapshot)))
    asked = _controls(snapshot)
    cell = asked.cell or HeatCell(asked.since_unix_s, asked.until_unix_s, 0.0, 0.0)
    bounds = {} if asked.cell is None else {"above_s": cell.above_s, "up_to_s": cell.up_to_s}
    try:
        found = _read(hub, asked)
        records = client.requests(
            LIMIT, cell.since_unix_s, asked.order, until_unix_s=cell.until_unix_s, **bounds, **asked.filters
        )
    except ControlError as error:
        st.html(cards.banner(f"The request records did not come: {error}", "broken", alert=True))
        return
    left, right = st.columns([5, 3], gap="medium")
    with left:
        st.fragment(_heatmap, run_every=None if asked.is_past else LIVE_EVERY_S)(hub, asked)
    with right:
        _different(hub, asked)
    _said(found, asked, records)
    chosen = _list(records)
    if chosen:
        st.query_params["request"] = chosen
    if request_id := chosen or st.query_params.get("request"):
        waterfall(hub, request_id, records)


# --- controls ------------------------------------------------------------


def _has_any(hub: Hub, client: Plane) -> bool:
    """Whether some are on record: from when its requests passed our gateway. True where nobody can say."""
    try:
        return bool(client.requests(1, hub.now() - max(WINDOWS.values())))
    except ControlError:
        return True


def _controls(snapshot: FleetSnapshot) -> Asked:
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        metric = url.segmented("Latency", METRICS, name="latency", default="ttft", on_change=_leave_cell)
        window = url.segmented("Arrived in the last", WINDOW_WORDS, name="arrived", default="1h", on_change=_to_live)
        order = url.segmented("Order", {"recent": "Recent", "slowest": "Slowest"}, name="order", default="recent")
        past = _past()
        st.button("Read again", help="The list does not refresh by itself.")
        if past:
            st.button("Back to live", type="primary", on_click=_to_live)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        filters = _filters(snapshot, metric)
    since, until = past or (snapshot.at_unix_s - WINDOWS[window], snapshot.at_unix_s)
    cell = heat.cell_of(st.query_params.get("cell"))
    return Asked(since, until, past is not None, order, filters["metric"], filters, cell)


def _filters(snapshot: FleetSnapshot, metric: str) -> RequestFilters:
    rule = url.select("Route rule", {"any": "Any", **words.RULE_WORDS}, name="rule", default="any", width=230)
    outcome = url.select("Outcome", OUTCOMES, name="outcome", default="any", width=160)
    workers = {"any": "Any", **{each.worker_id: each.worker_id for each in snapshot.workers}}
    worker = url.select("Worker", workers, name="worker", default="any", width=110)
    moved = url.select("Moved or continued", MOVED_WORDS, name="moved", default="any", width=190)
    class_ = url.select("Class", CLASS_WORDS, name="class", default="any", width=130)
    key = url.text("API key id", name="key", width=150)
    return RequestFilters(
        metric=KINDS[metric],
        rule=None if rule == "any" else rule,
        worker_id=None if worker == "any" else worker,
        api_key_id=key or None,
        good={"good": True, "not-good": False}.get(outcome),
        failed=True if outcome == "failed" else None,
        moved={"yes": True, "no": False}.get(moved),
        batch={"batch": True, "interactive": False}.get(class_),
    )


def _past() -> tuple[float, float] | None:
    """A range in the address, as from and to in Unix seconds; None: up to now."""
    try:
        since, until = float(st.query_params["from"]), float(st.query_params["to"])
    except (KeyError, ValueError):
        return None
    return (since, until) if 0 < since < until < 1e11 else None


def _to_live() -> None:
    for name in ("from", "to"):
        if name in st.query_params:
            del st.query_params[name]
    _leave_cell()


def _leave_cell() -> None:
    if "cell" in st.query_params:
        del st.query_params["cell"]
    st.session_state["heat_drawn"] = st.session_state.get("heat_drawn", 0) + 1  # a new chart has nothing selected


# --- heatmap ------------------------------------------------------------


def _read(hub: Hub, asked: Asked) -> Heatmap:
    """The heatmap of the range, or up to now; one reading for all who look at the same."""
    since, until, now = asked.since_unix_s, asked.until_unix_s, hub.look().snapshot
    if not asked.is_past and now is not None:
        until = now.at_unix_s // LIVE_EVERY_S * LIVE_EVERY_S + LIVE_EVERY_S
        since = until - (asked.until_unix_s - since)
    key = ("heatmap", *asked.filters.items(), since, until)
    return hub.cached(key, LIVE_EVERY_S / 2, lambda plane: plane.heatmap(since, until, **asked.filters))


def _heatmap(hub: Hub, asked: Asked) -> None:
    if st.session_state.pop("heat_clicked", False):
        st.rerun()  # the whole page: the list is about the cell
    try:
        found = _read(hub, asked)
    except ControlError as error:
        st.html(cards.banner(f"The heatmap did not come: {error}", "broken", alert=True))
        return
    tz = session.tz()
    window = f"{format.moment(found.since_unix_s, tz)} to {format.moment(found.until_unix_s, tz)}"
    source = "simulated" if found.simulated else "derived" if found.is_estimated else "measured"
    st.html(
        f'<div class="pl pl-row pl-between"><span><b>{cards.text(METRICS[found.metric])}</b> '
        f"{cards.tag(source, found.note, left=True)}</span>"
        f'<span class="pl-muted">{cards.text(window)}, {format.step(found.step_s)} a column</span></div>'
    )
    if not found.counts:
        st.html(
            cards.empty(
                "No request in this window",
                "Requests appear here when they have ended. Widen the window or the filters.",
            )
        )
        return
    key = f"heat_{found.metric}_{st.session_state.get('heat_drawn', 0)}"

    def clicked() -> None:
        st.session_state["heat_clicked"] = True
        cell = heat.chosen_cell(dict(st.session_state[key]), found)
        if cell is None:
            st.query_params.pop("cell", None)
            return
        st.query_params["cell"] = cell.address
        st.query_params["from"], st.query_params["to"] = f"{found.since_unix_s:.0f}", f"{found.until_unix_s:.0f}"
        st.query_params.pop("request", None)

    draw.clickable(
        heat.spec(HEATMAP_PX, format.time_axis(found.until_unix_s - found.since_unix_s)),
        heat.datasets(found, asked.cell),
        key=key,
        param=heat.PARAM,
        on_click=clicked,
        alt=f"Heatmap of requests by arrival and {METRICS[found.metric].lower()}. Click a cell to list its requests.",
    )
    st.caption(f"{words.sentence(found.note)}. Click a cell to see its requests.")


def _different(hub: Hub, asked: Asked) -> None:
    cell = asked.cell
    st.html(cards.heading_small("What is different about " + ("these" if cell else "the slow ones")))
    bounds = (
        {}
        if cell is None
        else {
            "from_unix_s": cell.since_unix_s,
            "to_unix_s": cell.until_unix_s,
            "above_s": cell.above_s,
            "up_to_s": cell.up_to_s,
        }
    )
    try:
        found = hub.client(session.token(hub)).explanation(
            asked.since_unix_s, asked.until_unix_s, **bounds, **asked.filters
        )
    except ControlError as error:
        st.html(cards.banner(str(error), "broken", alert=True))
        return
    st.html(differences.bars(found))


# --- the list ------------------------------------------------------------


def _said(found: Heatmap, asked: Asked, records: list[RequestRecord]) -> None:
    """What the list shows of what there is, and the way back from a cell."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.html(f'<div class="pl">{cards.text(list_words(found, asked.cell, len(records), session.tz()))}</div>')
        if asked.cell:
            st.button("Leave the cell", on_click=_leave_cell)


def list_words(found: Heatmap, cell: HeatCell | None, num_shown: int, tz: tzinfo) -> str:
    """ "Listed: 37 of 412 requests of this cell, arrived .., first token above 1.2 s up to 1.5 s". Pure."""
    if cell is not None:
        num = heat.count_in(found, cell)
        start, end = format.clock(cell.since_unix_s, tz), format.clock(cell.until_unix_s, tz)
        about = "about " if found.is_estimated else ""
        lengths = f"above {format.duration(cell.above_s)} up to {format.duration(cell.up_to_s)}"
        return (
            f"Listed: {format.count(num_shown)} of {about}{format.count(num)} requests of this cell, arrived "
            f"{start} to {end}, {METRICS[found.metric].lower()} {lengths}."
        )
    counts = found.requests
    num_kept = sum(counts.kept.values())
    told = f"{format.count(num_shown)} listed. {format.count(counts.num_requests)} requests arrived in this time"
    if num_kept < counts.num_requests:
        slow = ", ".join(f"{format.count(num)} {name}" for name, num in counts.kept.items() if name != "share")
        return (
            f"{told}; records are kept of {format.count(num_kept)}: {slow + ', and ' if slow else ''}"
            f"{format.count(counts.kept.get('share', 0))} by chance. The others are counted."
        )
    return f"{told}; all of them have a record."


def _list(records: list[RequestRecord]) -> str | None:
    if not records:
        st.html(cards.empty("No request to list", "No record that is kept passes these filters."))
        return None
    column = st.column_config
    moved = any(each.moves for each in records)
    event = st.dataframe(
        tables.request_rows(records, session.tz()),
        hide_index=True,
        height=tables.table_height(len(records), 11),
        placeholder=format.NA,
        key="request_table",
        on_select="rerun",
        selection_mode="single-row",
        alt="Requests with outcome, rule, workers, tokens and latencies. Select a row to see its stages.",
        column_config={
            "arrived": column.TextColumn("Arrived", width=76),
            "request": column.TextColumn("Request", width=240),
            "outcome": column.TextColumn("Outcome", width=90),
            "past": column.TextColumn("Past bound", help="Bounds of the SLO that it was past", width=96),
            "rule": column.TextColumn("Rule", width=100),
            "prefill": column.TextColumn("Prefill on", width=84),
            "decode": column.TextColumn("Decode on", width=84),
            "prompt": column.NumberColumn("Prompt", help="tokens", format="localized", width=70),
            "cached": column.NumberColumn(
                "Cached", help="prompt tokens found in a worker's cache", format="localized", width=70
            ),
            "output": column.NumberColumn("Output", help="tokens", format="localized", width=70),
            "ttft_ms": column.NumberColumn("TTFT, ms", format="%.0f", width=80),
            "tpot_ms": column.NumberColumn("TPOT, ms", format="%.1f", width=80),
            "gap_ms": column.NumberColumn("Largest gap, ms", format="%.0f", width=110),
            "e2e_s": column.NumberColumn("Whole, s", format="%.2f", width=80),
            "went_on": column.TextColumn("Went on at", help="Where it went on, and why", width=150) if moved else None,
            "stall_ms": column.NumberColumn(
                "Stall, ms",
                help="The longest: last token before a move to the first one after",
                format="%.0f",
                width=80,
            )
            if moved
            else None,
        },
    )
    rows = event.selection.rows
    return records[rows[0]].request_id if rows and rows[0] < len(records) else None
