"""Requests: the recent and the slow ones, and one request's life as bars of its stages. Metadata only, never a prompt.

The list stands still until somebody asks again; filters and the chosen request live in the URL.
"""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from app import cards, charts, draw, format, frames, marks, session, tables, url, words
from app.source import Hub
from control.errors import ControlError, NotFound
from control.stories import move_words
from control.types import FleetSnapshot, RequestRecord

WINDOWS: dict[str, int] = {"15m": 900, "1h": 3600, "24h": 86_400}
WINDOW_WORDS: dict[str, str] = {"15m": "15 min", "1h": "1 hour", "24h": "24 hours"}
MOVED_WORDS: dict[str, str] = {"any": "Any", "yes": "Went on elsewhere", "no": "Stayed on its workers"}
LIMIT = 200


def page(hub: Hub, snapshot: FleetSnapshot) -> None:
    """Filters, the list, one request."""
    asked = _filters()
    client = hub.client(session.token(hub))
    since = snapshot.at_unix_s - asked.window_s
    try:
        records = client.requests(LIMIT, since, asked.order, rule=asked.rule, good=asked.good, moved=asked.moved)
    except ControlError as error:
        st.html(cards.banner(f"The request records did not come: {error}", "broken", alert=True))
        return
    chosen = _list(records)
    request_id = chosen or st.query_params.get("request")
    if chosen:
        st.query_params["request"] = chosen
    if request_id:
        _one(hub, request_id, records)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the filters say."""

    order: str
    window_s: int
    rule: str | None
    good: bool | None
    moved: bool | None


def _filters() -> Asked:
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        order = url.segmented("Order", {"recent": "Recent", "slowest": "Slowest"}, name="order", default="recent")
        window = url.segmented("Arrived in the last", WINDOW_WORDS, name="arrived", default="1h")
        rule = url.select("Route rule", {"any": "Any", **words.RULE_WORDS}, name="rule", default="any", width=240)
        outcomes = {"any": "Any", "good": "Good", "not-good": "Not good"}
        outcome = url.select("Outcome", outcomes, name="outcome", default="any", width=120)
        moved = url.select("Moved or continued", MOVED_WORDS, name="moved", default="any", width=200)
        st.button("Read again", help="The list does not refresh by itself.")
    return Asked(
        order=order,
        window_s=WINDOWS[window],
        rule=None if rule == "any" else rule,
        good={"good": True, "not-good": False}.get(outcome),
        moved={"yes": True, "no": False}.get(moved),
    )


def _list(records: list[RequestRecord]) -> str | None:
    if not records:
        st.html(
            cards.empty(
                "No request in this window",
                "Requests appear here when they have ended. Widen the window or the filters.",
            )
        )
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


def _one(hub: Hub, request_id: str, records: list[RequestRecord]) -> None:
    record = next((each for each in records if each.request_id == request_id), None)
    if record is None:
        try:
            record = hub.client(session.token(hub)).request(request_id)
        except NotFound:
            st.html(cards.empty("This request is not in the history", f"{request_id}: unknown, or past its retention."))
            return
        except ControlError as error:
            st.html(cards.banner(str(error), "broken", alert=True))
            return
    left, right = st.columns([3, 2], gap="medium")
    with left:
        st.html(cards.heading_small(f"Request {request_id}"))
        if frames.stages(record):
            data = {
                "live": frames.stage_bars(record),
                "marks": frames.first_token(record),
                "moves": frames.request_moves(record, marks.LOOKS),
            }
            draw.chart(charts.stages(), data, key="stages", alt=stage_words(record))
        else:
            st.html(cards.empty("No stage was timed", record.error or "The request ended before its first stage."))
        if record.moves:
            st.html(cards.heading_small("Its way") + cards.steps(tables.story(record), f"The way of {request_id}"))
    with right:
        st.html(facts(record))


def stage_words(record: RequestRecord) -> str:
    """The bars as a sentence, for who cannot see them. Pure."""
    parts = [f"{name} {format.duration(end - start)}" for name, start, end in frames.stages(record)]
    parts += [move_words(move) for move in record.moves]
    return f"Request {record.request_id}: {', '.join(parts)}; first token after {format.duration(record.ttft_s)}."


def facts(record: RequestRecord) -> str:
    """What is known of one request. Pure."""
    source = "simulated" if record.simulated else "measured"
    pairs = [
        (
            "Outcome",
            f"{tables.outcome(record)}, {record.finish_reason or 'no finish reason'}"
            + (f": {record.error}" if record.error else ""),
        ),
        ("Route", f"{words.RULE_WORDS.get(record.rule, record.rule)}. {record.reason}"),
        ("Workers", f"prefill {record.prefill_worker or '–'}, decode {record.decode_worker or '–'}"),
        (
            "Tokens",
            f"{format.count(record.prompt_tokens)} prompt ({format.count(record.cached_tokens)} cached), "
            f"{format.count(record.output_tokens)} of {format.count(record.max_tokens)} output",
        ),
        ("TTFT, TPOT", f"{format.duration(record.ttft_s)}, {format.duration(record.tpot_s)}"),
        ("Largest gap, whole", f"{format.duration(record.max_gap_s)}, {format.duration(record.e2e_s)}"),
        (
            "Asked by",
            f"{record.api_key_id or '–'} at {record.gateway_id}, {record.endpoint}"
            f"{', streamed' if record.stream else ''}",
        ),
        ("Attempt", f"{record.attempt}, rerouted {record.num_reroutes} times"),
    ]
    rows = [(cards.Cell(name), cards.Cell(text)) for name, text in pairs]
    return f'<div style="margin:12px 0 4px">{cards.tag(source, left=True)}</div>' + cards.table(("", ""), rows, "Facts")
