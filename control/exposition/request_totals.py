"""What became of all requests since this process started, for Prometheus: by rule and outcome, and how long they took.

The gateway counts its own requests with it, and the plane those of all its gateways, each once. Labels are fixed sets:
nothing that a client sends is one.
"""

from __future__ import annotations

from collections import Counter
from typing import Final, Literal, get_args

from control.exposition.families import Family, Latencies, Page
from control.traffic_stats import is_cancelled, is_error, is_good, is_offered, is_rejected
from control.types.requests import MoveKind, RequestRecord, Slo
from control.types.routing import RouteRule

Outcome = Literal["good", "late", "error", "rejected", "cancelled", "bad_request"]
Path = Literal["split", "local", "none"]
OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)
PATHS: Final[tuple[Path, ...]] = get_args(Path)
#: A request that ended before it was routed has none.
RULES: Final = (*(each.value for each in RouteRule), "none")
_SAMPLED: Final = "-01"


def outcome_of(record: RequestRecord, slo: Slo) -> Outcome:
    """How it ended, each request in one way."""
    if is_cancelled(record):
        return "cancelled"
    if is_rejected(record):
        return "rejected"
    if is_error(record):
        return "error"
    if not is_offered(record):
        return "bad_request"
    return "good" if is_good(record, slo) else "late"


class RequestTotals:
    """Counts that only grow. The size is fixed, whatever is counted."""

    def __init__(self, slo: Slo) -> None:
        self._slo = slo
        self.outcomes: Counter[tuple[str, Outcome]] = Counter()
        self.moves: Counter[MoveKind] = Counter()
        self.prompt_tokens = self.cached_tokens = self.output_tokens = 0
        self.latencies = {(name, path): Latencies() for name in LATENCIES for path in PATHS}
        self._of_path = {path: [self.latencies[name, path] for name in _TIMED] for path in PATHS}

    def add(self, record: RequestRecord) -> None:
        """One request has ended."""
        rule = record.rule if record.rule in _PATH_OF else "none"
        self.outcomes[rule, outcome_of(record, self._slo)] += 1
        if record.moves:
            self.moves.update(each.kind for each in record.moves)
        self.prompt_tokens += record.prompt_tokens
        self.cached_tokens += record.cached_tokens
        self.output_tokens += record.output_tokens
        latencies = self._of_path[_PATH_OF[rule]]
        trace_id = record.traceparent[3:35] if record.traceparent.endswith(_SAMPLED) else ""
        at_unix_s = record.arrival_unix_s + (record.e2e_s or 0.0) if trace_id else None
        for each, value_s in zip(latencies, _durations(record), strict=False):
            if value_s is not None:
                each.observe(value_s, trace_id, at_unix_s)
        latencies[-1].add(record.itl_buckets)


def path_of(rule: str) -> Path:
    if rule in ("none", RouteRule.CANNOT_FIT, RouteRule.NO_CAPACITY):
        return "none"
    return "split" if rule == RouteRule.REMOTE else "local"


_PATH_OF: Final[dict[str, Path]] = {rule: path_of(rule) for rule in RULES}
#: What is timed once per request, in the order of `_durations`; then the gaps.
_TIMED: Final = ("first_token", "per_token", "whole", "line", "queue", "prefill", "handoff", "decode", "gap")


def _durations(record: RequestRecord) -> tuple[float | None, ...]:
    """What was timed; the whole only of requests that were served."""
    return (
        record.ttft_s,
        record.tpot_s,
        record.e2e_s if record.status == 200 else None,
        record.line_s,
        record.queue_s,
        record.prefill_s,
        record.handoff_s,
        record.decode_s,
    )


class RequestFamilies:
    """The families of one page, whose names begin alike."""

    def __init__(self, prefix: str, *, has_moves: bool = True) -> None:
        self._has_moves = has_moves
        self.requests = Family(
            f"{prefix}_requests_total",
            "counter",
            f"Requests that ended: {', '.join(OUTCOMES)}. The SLO counts the first four.",
            ("rule", "outcome"),
        )
        self.tokens = Family(
            f"{prefix}_request_tokens_total",
            "counter",
            "Tokens of requests that ended: prompt, cached, output.",
            ("kind",),
        )
        self.moves = Family(
            f"{prefix}_request_moves_total",
            "counter",
            "Requests that went on at another worker, as they ended.",
            ("kind",),
        )
        self.latencies = {
            name: Family(f"{prefix}_{words}_seconds", "histogram", text, ("path",))
            for name, (words, text) in LATENCIES.items()
        }
        moves = (self.moves,) if has_moves else ()
        self.all = (self.requests, self.tokens, *moves, *self.latencies.values())

    def fill(self, page: Page, totals: RequestTotals) -> None:
        """Every combination, also of those that did not occur: a first one is then seen as growth."""
        for rule in RULES:
            for outcome in OUTCOMES:
                page.put(self.requests, totals.outcomes[rule, outcome], rule, outcome)
        for kind in ("prompt", "cached", "output"):
            page.put(self.tokens, getattr(totals, f"{kind}_tokens"), kind)
        for move in get_args(MoveKind) if self._has_moves else ():
            page.put(self.moves, totals.moves[move], move)
        for (name, path), latencies in totals.latencies.items():
            page.put_latencies(self.latencies[name], latencies, path)


LATENCIES: Final[dict[str, tuple[str, str]]] = {
    "first_token": ("time_to_first_token", "From arrival to the first token."),
    "gap": ("inter_token_gap", "One gap between tokens; many per request. The sum is within 1%."),
    "per_token": ("time_per_output_token", "(e2e - first token) / (tokens - 1), one per request."),
    "whole": ("request_duration", "From arrival to the end, of requests that were served."),
    "line": ("request_line", "In a gateway's line for room."),
    "queue": ("request_queue", "On a worker before its first step."),
    "prefill": ("request_prefill", "Prefill of the prompt."),
    "handoff": ("request_handoff", "KV from the prefill worker to the decode worker."),
    "decode": ("request_decode", "On decode workers."),
}
