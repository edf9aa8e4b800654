"""One gateway's `/metrics`. Names and labels are a fixed set: nothing that a client sends is one.

Every series carries the gateway's id: gateways of a host share one address, so a scrape may reach any of them, and what
one has counted is never taken for another's. What all of them have served together is on the plane's page.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final, get_args

from control.exposition.families import SERIES_PER_HISTOGRAM, Family, Latencies, Page
from control.exposition.request_totals import LATENCIES, OUTCOMES, PATHS, RULES, RequestFamilies, RequestTotals
from control.gateway.admission import Admission
from control.gateway.fleet import Fleet
from control.gateway.mover import MoveCounts
from control.gateway.promises import PromiseBook
from control.gateway.records import RecordLog
from control.gateway.tracing import OUTCOMES as TRACED
from control.gateway.tracing import Tracing
from control.types.requests import MoveKind


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayFacts:
    """What one gateway holds and has counted since it started."""

    gateway_id: str
    started_unix_s: float
    fleet: Fleet
    admission: Admission
    records: RecordLog
    totals: RequestTotals
    tracing: Tracing | None


def _family(name: str, text: str, *labels: str) -> Family:
    return Family(f"phaseline_gateway_{name}", "counter" if name.endswith("_total") else "gauge", text, labels)


REQUESTS = RequestFamilies("phaseline_gateway", has_moves=False)
STARTED = _family("start_time_seconds", "When this gateway started, Unix time.")
CPU = _family("cpu_seconds_total", "CPU time of the process.")
IN_FLIGHT = _family("requests_in_flight", "Requests that it holds.")
LINE = _family("line_requests", "Requests that wait for room.")
SERVING = _family("serving_workers", "Workers that it is connected to and that take requests.")
TABLE = _family("table_version", "Version of the routing table that it routes by.")
ARRIVED = _family("arrived_requests_total", "Requests that arrived, well formed.")
WAITING = _family("waiting_records", "Request records that the plane has not acknowledged.")
LOST = _family("lost_records_total", "Request records dropped because the plane was away for too long.")
TRACES = _family(
    "traced_requests_total", "Requests whose spans were sent, failed to be, or gave way to newer ones.", "outcome"
)
UNTRACED = _family("waiting_traces", "Requests whose spans the collector does not have yet.")
PROMISES = _family("promises_total", "Places promised with a 429; kept: came back in time and got in.", "outcome")
MOVES = _family("moves_total", "Running requests that went on at another worker.", "kind")
GIVEN_UP = _family("moves_given_up_total", "Migrations that came to nothing.")
MOVED = _family("moved_bytes_total", "KV bytes that were copied for migrations.")
STALL = Family(
    "phaseline_gateway_move_stall_seconds",
    "histogram",
    "Last token before a move to the first one after it.",
    ("kind",),
)
NOTICE = Family(
    "phaseline_gateway_failover_notice_seconds",
    "histogram",
    "A lost worker's last word, or the begin of its hung step, to leaving it.",
)
FAMILIES: Final = (
    *(STARTED, CPU, IN_FLIGHT, LINE, SERVING, TABLE, ARRIVED, WAITING, LOST, TRACES, UNTRACED),
    *(PROMISES, MOVES, GIVEN_UP, MOVED, STALL, NOTICE),
    *REQUESTS.all,
)
_PROMISES: Final = ("made", "kept", "lapsed")
_KINDS: Final = get_args(MoveKind)
#: No page of one gateway has more series than this, whatever comes.
MAX_SERIES: Final = (
    16
    + len(TRACED)
    + len(_PROMISES)
    + len(_KINDS)
    + len(RULES) * len(OUTCOMES)
    + (len(LATENCIES) * len(PATHS) + len(_KINDS) + 1) * SERIES_PER_HISTOGRAM
)


def gateway_page(facts: GatewayFacts) -> Page:
    """Everything since the gateway started. Stalls are those of `engine.histogram`: their sum is within 1%."""
    page = Page(FAMILIES, {"gateway": facts.gateway_id})
    fleet, admission = facts.fleet, facts.admission
    page.put(STARTED, facts.started_unix_s)
    page.put(CPU, time.process_time())
    page.put(IN_FLIGHT, len(admission.in_flight))
    page.put(LINE, len(fleet.waiters))
    page.put(SERVING, fleet.num_serving)
    page.put(TABLE, fleet.table.version if fleet.table else None)
    page.put(ARRIVED, admission.num_arrived)
    page.put(WAITING, facts.records.num_waiting)
    page.put(LOST, facts.records.num_dropped)
    if facts.tracing is not None:
        page.put(UNTRACED, facts.tracing.num_waiting)
        for outcome in TRACED:
            page.put(TRACES, facts.tracing.requests[outcome], outcome)
    _put_promises(page, admission.gatekeeper.promises)
    _put_moves(page, fleet.mover.counts)
    REQUESTS.fill(page, facts.totals)
    return page


def _put_promises(page: Page, promises: PromiseBook) -> None:
    for outcome in _PROMISES:
        page.put(PROMISES, getattr(promises, f"num_{outcome}"), outcome)


def _put_moves(page: Page, moves: MoveCounts) -> None:
    page.put(GIVEN_UP, moves.num_given_up)
    page.put(MOVED, moves.num_bytes)
    for kind in _KINDS:
        page.put(MOVES, moves.num_by_kind[kind], kind)
        stalls = Latencies()
        stalls.add({bucket: count for (each, bucket), count in moves.stall_buckets.items() if each == kind})
        page.put_latencies(STALL, stalls, kind)
    notices = Latencies()
    notices.add(moves.notice_buckets)
    page.put_latencies(NOTICE, notices)
