"""One request of a simulated fleet while it lives, and its record afterwards. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from control.fleets.sim_traffic import Arrival
from control.fleets.sim_worker import SimWorker
from control.gateway.timeline import Timeline
from control.routing import RouteDecision
from control.traffic_stats import judged
from control.types.bottleneck import Resource
from control.types.requests import MoveKind, RequestMove, RequestRecord, Slo
from control.types.routing import RoutingTable
from engine.types import FinishReason, SamplingParams
from engine.wire import StageTimes

if TYPE_CHECKING:
    from control.fleets.sim_mover import SimMove


@dataclass(slots=True, eq=False)
class SimRequest:
    """One request's life. `attempt` counts submissions; answers to earlier ones are stale and dropped."""

    request_id: str
    arrival: Arrival
    timeline: Timeline
    attempt: int = 0
    num_tokens: int = 0  # received
    decision: RouteDecision | None = None
    prefill: SimWorker | None = None  # has work of this attempt
    decode: SimWorker | None = None
    prefill_worker: str = ""
    decode_worker: str = ""
    num_reroutes: int = 0
    waits_since_s: float | None = None
    line_s: float = 0.0  # waited in all, until the last time it left the line
    waits_for: Resource | None = None
    times: StageTimes | None = None  # of the prefill
    handoff_s: float | None = None
    decode_s: float | None = None
    excluded: set[str] = field(default_factory=set)
    is_decoding: bool = False  # the decode worker has given tokens of this attempt
    move: SimMove | None = None  # on its way to another worker
    moves: list[RequestMove] = field(default_factory=list)
    is_moving: bool = False  # the last move has not shown a token yet
    rest_bytes: float = 0.0  # KV that is copied while it stands
    num_attempts: int = 0

    @property
    def sampling(self) -> SamplingParams:
        return SamplingParams(seed=self.arrival.seed, max_tokens=self.arrival.output_tokens)

    @property
    def rest_tokens(self) -> int:
        return self.arrival.output_tokens - self.num_tokens

    def new_attempt(self) -> int:
        """No two submissions of a request have the same number, also when one of them came to nothing."""
        self.num_attempts += 1
        return self.num_attempts

    def resumed(self, now_s: float) -> None:
        """The first token after a move ends its stall; one that had none before was not stalled."""
        stall_s = now_s - self.timeline.last_s if self.num_tokens else None
        num_bytes = self.moves[-1].num_bytes + round(self.rest_bytes)
        self.moves[-1] = replace(self.moves[-1], to_worker=self.decode_worker, stall_s=stall_s, num_bytes=num_bytes)
        self.is_moving, self.rest_bytes = False, 0.0

    def note_move(self, kind: MoveKind, from_worker: str, reason: str, begun_s: float, num_bytes: float = 0) -> None:
        """It leaves this worker; the rest of the story is known with its next token."""
        at_s = begun_s - self.arrival.at_unix_s
        self.moves.append(
            RequestMove(
                kind=kind, from_worker=from_worker, to_worker="", at_s=at_s, num_bytes=round(num_bytes), reason=reason
            )
        )
        self.is_moving, self.rest_bytes = True, 0.0


def sim_record(
    request: SimRequest,
    table: RoutingTable,
    gateway_id: str,
    slo: Slo,
    now_s: float,
    status: int,
    finish: FinishReason | None,
    error: str,
) -> RequestRecord:
    """The record of a request that ends now."""
    arrival, line, times, decision = request.arrival, request.timeline, request.times, request.decision
    gaps = line.gaps
    record = RequestRecord(
        request_id=request.request_id,
        fleet_id=table.fleet_id,
        model_id=table.model_id,
        gateway_id=gateway_id,
        api_key_id="simulated",
        simulated=True,
        arrival_unix_s=arrival.at_unix_s,
        attempt=request.attempt,
        priority=0,
        stream=True,
        endpoint="simulated",
        rule=decision.rule.value if decision else "",
        reason=decision.reason if decision else "",
        prefill_worker=request.prefill_worker,
        decode_worker=request.decode_worker,
        prompt_tokens=arrival.prompt_tokens,
        cached_tokens=times.num_cached if times else 0,
        decode_cached_tokens=decision.decode_cached_tokens if decision else None,
        output_tokens=request.num_tokens,
        max_tokens=arrival.output_tokens,
        status=status,
        finish_reason=finish.value if finish else "error",
        error=error,
        queue_s=times.queue_s if times else None,
        prefill_s=times.prefill_s if times else None,
        handoff_s=request.handoff_s,
        ttft_s=line.ttft_s,
        tpot_s=line.tpot_s,
        max_gap_s=gaps.max_s if line.num_tokens > 1 else None,
        e2e_s=now_s - arrival.at_unix_s,
        good=None,
        num_reroutes=request.num_reroutes,
        itl_buckets=gaps.counts,
        moves=tuple(request.moves),
        line_s=request.line_s + (0.0 if request.waits_since_s is None else now_s - request.waits_since_s),
        decode_s=request.decode_s,
        waited_for="" if request.waits_for is None else request.waits_for.value,
    )
    return judged(record, slo)
