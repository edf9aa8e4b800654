"""A request's life as its gateway recorded it, what a good one is, and how records are asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypedDict

from control.types.workers import LossCause

#: API key and key id of the sample traffic that `phaseline up --traffic` sends: the one id that is shown as it is.
SAMPLE_TRAFFIC_KEY = "sample-traffic"
MoveKind = Literal["failover", "migration", "recompute"]
#: A bound of the SLO, by the time that it bounds.
SloBound = Literal["ttft", "tpot", "max_gap"]
#: Times of a request that a heatmap shows. gap: the largest between two of its tokens.
LatencyKind = Literal["ttft", "e2e", "gap"]
#: Why a request's record is kept (`control.sampling`); dropped: it is only counted.
Kept = Literal["slow", "failed", "moved", "share", "dropped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Good: TTFT <= base + per_token x uncached prompt tokens, TPOT <= tpot_s, largest gap <= max_gap_s."""

    ttft_base_s: float = 1.0
    ttft_per_token_s: float = 0.0005
    tpot_s: float = 0.1
    max_gap_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMove:
    """A running request went on at another worker. `failover`: its worker died or hung; `migration`: its KV was moved
    while it decoded; `recompute`: its worker drained, and the KV was computed anew."""

    kind: MoveKind
    from_worker: str
    to_worker: str
    at_s: float  # since the request's arrival: when it was left, or when the move was begun
    notice_s: float | None = None  # failover: last word, or begin of the hung step, to noticing; None: not known
    stall_s: float | None = None  # last token before to the first one after; None: it lacks one of them
    num_bytes: int = 0  # KV that was copied: while it decoded on, and the last blocks, copied while it stood
    reason: str = ""
    predicted_stall_s: float | None = None  # migration: what the estimate said of `stall_s` before it began
    cause: LossCause | None = None  # failover: how the worker was lost


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request's life, written by the gateway that served it. Times relative to arrival, in seconds."""

    request_id: str
    fleet_id: str
    model_id: str
    gateway_id: str
    api_key_id: str
    simulated: bool
    arrival_unix_s: float
    attempt: int
    priority: int
    stream: bool
    endpoint: str
    rule: str
    reason: str
    prefill_worker: str
    decode_worker: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    max_tokens: int
    status: int  # HTTP status
    finish_reason: str
    error: str
    queue_s: float | None
    prefill_s: float | None
    handoff_s: float | None
    ttft_s: float | None
    tpot_s: float | None
    max_gap_s: float | None
    e2e_s: float | None
    good: bool | None  # None: client cancelled
    num_reroutes: int = 0
    itl_buckets: dict[int, int] = field(default_factory=dict)  # engine.histogram bucket -> count
    traceparent: str = ""
    decode_cached_tokens: int | None = None  # of the prompt, most that one worker that can decode held when routed
    moves: tuple[RequestMove, ...] = ()  # in the order they happened
    line_s: float | None = None  # in the gateway's line for room; None: an older gateway, which did not say
    decode_s: float | None = None  # on its decode worker, from the first token, or from when its KV was there
    waited_for: str = ""  # the `Resource` that it waited for in the line, or was refused for want of; "" is unknown
    api_key_name: str = ""  # of the setting `key_names`; "": it has none there
    broken: tuple[SloBound, ...] = ()  # bounds that it was past; one that ended without being served has an error
    kept: Kept = "share"
    weight: float = 1.0  # how many requests like it this record stands for: 1 / the share of them that was kept


class RequestFilters(TypedDict, total=False):
    """Which requests are asked for; what is left out, or None, does not matter."""

    metric: LatencyKind  # which latency bounds and orders are about: e2e when it is left out
    rule: str | None
    worker_id: str | None
    api_key_id: str | None
    good: bool | None
    failed: bool | None  # refused, or ended with an error
    moved: bool | None  # went on at another worker
    batch: bool | None  # of the class batch


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordCounts:
    """All requests of a range, and what became of their records. None of it is estimated."""

    num_requests: int
    kept: dict[str, int]  # why -> records; those past their retention are still counted
    dropped: dict[str, int]  # served | refused | cancelled -> requests that are only counted
