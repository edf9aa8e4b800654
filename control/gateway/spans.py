"""One request's record as OpenTelemetry spans. Pure, and the only module that knows the SDK's types.

    POST /v1/chat/completions ─┬─ line ── queue ── prefill ── handoff ── decode
                               └─ events: first_token; failover, migration, recompute

A request is known when it ends, so its spans are made then, with the times that were measured meanwhile; a stage that
was not timed has no span. Names are those of the semantic conventions for HTTP servers and generative AI where they
have one.
Not decided here: which requests are traced, and how spans travel (`control.gateway.tracing`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import AttributeValue

from control.traffic_stats import is_error
from control.types.requests import RequestMove, RequestRecord

SCOPE: Final = InstrumentationScope("phaseline.gateway")
PATHS: Final = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
OPERATIONS: Final = {"chat": "chat", "completions": "text_completion"}
Attributes = dict[str, AttributeValue]


def stages(record: RequestRecord) -> Iterator[tuple[str, str, float, float]]:
    """(stage, worker, begin, end) in seconds after arrival, in order, none of them after the end."""
    at, end = 0.0, record.e2e_s or 0.0
    measured = (
        ("line", "", record.line_s),
        ("queue", record.prefill_worker, record.queue_s),
        ("prefill", record.prefill_worker, record.prefill_s),
        ("handoff", record.decode_worker, record.handoff_s),
    )
    for name, worker, length_s in measured:
        if length_s:
            until = min(end, at + length_s)
            yield name, worker, at, until
            at = until
    if record.ttft_s is not None:
        yield "decode", record.decode_worker, at, end


def spans_of(record: RequestRecord, parent_span_id: str, resource: Resource) -> list[ReadableSpan]:
    """The request's own span, below its client's where that has one, and one for each stage."""
    trace_id, span_id, flags = record.traceparent[3:35], record.traceparent[36:52], record.traceparent[53:]
    context = _context(trace_id, span_id, flags)
    root = ReadableSpan(
        name=f"POST {PATHS.get(record.endpoint, record.endpoint)}",
        context=context,
        parent=_context(trace_id, parent_span_id, flags, is_remote=True) if parent_span_id else None,
        resource=resource,
        attributes=_attributes(record),
        events=list(_events(record)),
        kind=SpanKind.SERVER,
        status=Status(StatusCode.ERROR, record.error) if is_error(record) else Status(),
        start_time=_ns(record.arrival_unix_s),
        end_time=_ns(record.arrival_unix_s + (record.e2e_s or 0.0)),
        instrumentation_scope=SCOPE,
    )
    return [root, *(_stage(record, context, resource, *each) for each in stages(record))]


def _stage(
    record: RequestRecord, parent: SpanContext, resource: Resource, name: str, worker: str, begin: float, end: float
) -> ReadableSpan:
    own_id = hashlib.sha256(f"{parent.span_id:x} {name}".encode()).hexdigest()[:16]
    return ReadableSpan(
        name=name,
        context=_context(f"{parent.trace_id:032x}", own_id, f"{parent.trace_flags:02x}"),
        parent=parent,
        resource=resource,
        attributes={"phaseline.worker": worker} if worker else {},
        start_time=_ns(record.arrival_unix_s + begin),
        end_time=_ns(record.arrival_unix_s + end),
        instrumentation_scope=SCOPE,
    )


def _attributes(record: RequestRecord) -> Attributes:
    found: Attributes = {
        "http.request.method": "POST",
        "http.response.status_code": record.status,
        "url.path": PATHS.get(record.endpoint, record.endpoint),
        "gen_ai.operation.name": OPERATIONS.get(record.endpoint, record.endpoint),
        "gen_ai.request.model": record.model_id,
        "gen_ai.request.max_tokens": record.max_tokens,
        "gen_ai.response.id": record.request_id,
        "gen_ai.response.finish_reasons": (record.finish_reason,),
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.output_tokens,
        "phaseline.fleet_id": record.fleet_id,
        "phaseline.simulated": record.simulated,
        "phaseline.rule": record.rule,
        "phaseline.reason": record.reason,
        "phaseline.prefill_worker": record.prefill_worker,
        "phaseline.decode_worker": record.decode_worker,
        "phaseline.cached_tokens": record.cached_tokens,
        "phaseline.num_reroutes": record.num_reroutes,
    }
    if record.good is not None:
        found["phaseline.good"] = record.good
    return found


def _events(record: RequestRecord) -> Iterator[Event]:
    if record.ttft_s is not None:
        yield Event("first_token", {}, _ns(record.arrival_unix_s + record.ttft_s))
    for move in record.moves:
        yield Event(move.kind, _move_attributes(move), _ns(record.arrival_unix_s + move.at_s))


def _move_attributes(move: RequestMove) -> Attributes:
    found: Attributes = {
        "phaseline.from_worker": move.from_worker,
        "phaseline.to_worker": move.to_worker,
        "phaseline.moved_bytes": move.num_bytes,
        "phaseline.reason": move.reason,
    }
    if move.stall_s is not None:
        found["phaseline.stall_s"] = move.stall_s
    if move.notice_s is not None:
        found["phaseline.notice_s"] = move.notice_s
    return found


def _context(trace_id: str, span_id: str, flags: str, *, is_remote: bool = False) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote, TraceFlags(int(flags, 16)))


def _ns(at_unix_s: float) -> int:
    return int(at_unix_s * 1e9)
