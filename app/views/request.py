"""One request: its life as bars of its stages, where it went on, and what is known of it. Metadata, never a prompt."""

from __future__ import annotations

import streamlit as st

from app import cards, charts, draw, format, frames, marks, session, tables, words
from app.source import Hub
from control.differences import priority_class
from control.errors import ControlError, NotFound
from control.stories import move_words
from control.types.requests import RequestRecord

KEPT_WORDS = {"slow": "it was slow", "failed": "it failed", "moved": "it left a worker"}


def waterfall(hub: Hub, request_id: str, records: list[RequestRecord]) -> None:
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


def kept_words(record: RequestRecord) -> str:
    """Why there is a record of it."""
    if record.kept in KEPT_WORDS:
        return KEPT_WORDS[record.kept]
    if record.weight <= 1.0:
        return "all were kept then"
    return f"of chance: one of {format.number(record.weight)} like it was kept"


def facts(record: RequestRecord) -> str:
    """What is known of one request. Pure."""
    source = "simulated" if record.simulated else "measured"
    pairs = [
        (
            "Outcome",
            f"{tables.outcome(record)}, {record.finish_reason or 'no finish reason'}"
            + (f": {record.error}" if record.error else "")
            + (f"; past the bound on {tables.broken_words(record)}" if record.broken else ""),
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
            f"{record.api_key_name or record.api_key_id or '–'} at {record.gateway_id}, {record.endpoint}, "
            f"{priority_class(record)}{', streamed' if record.stream else ''}",
        ),
        ("Attempt", f"{record.attempt}, rerouted {record.num_reroutes} times"),
        ("Kept because", kept_words(record)),
    ]
    rows = [(cards.Cell(name), cards.Cell(text)) for name, text in pairs]
    return f'<div style="margin:12px 0 4px">{cards.tag(source, left=True)}</div>' + cards.table(("", ""), rows, "Facts")
