"""What a request asks of the workers, and by whom it was served: the values around a relay."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from control.routing import RouteDecision
from control.types.requests import RequestMove
from engine.types import SamplingParams, WorkKind
from engine.wire import StageTimes, Submit


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a request asks of the workers; fixed at admission."""

    request_id: str
    wire_id: str  # unique among all requests that the workers hold
    prompt: list[int]
    block_hashes: list[int]
    sampling: SamplingParams
    arrival_s: float
    priority: int = 0
    deadline_unix_s: float | None = None
    api_key_id: str = ""
    traceparent: str = ""
    parent_span_id: str = ""  # of the client's span

    def submission(self, attempt: int, kind: WorkKind, tokens: list[int], fence: int) -> Submit:
        """The message that asks a worker to go on after `tokens`, the answer so far."""
        return Submit(
            self.wire_id, attempt, kind, self.prompt + tokens if tokens else self.prompt, len(self.prompt),
            self.sampling, self.priority, self.deadline_unix_s, self.api_key_id, self.traceparent, fence,
        )  # fmt: skip


@dataclass(slots=True)
class Served:
    """By whom and how a request was served, for its record."""

    simulated: bool  # the fleet's word, until a worker is asked
    decision: RouteDecision | None = None  # the first one
    prefill_worker: str = ""
    decode_worker: str = ""
    num_reroutes: int = 0
    cached_tokens: int = 0  # of the prompt, where it was prefilled; the router's estimate until a worker says it
    queue_s: float | None = None
    prefill_s: float | None = None
    handoff_s: float | None = None  # None: no handoff, or not told
    decode_s: float | None = None  # over all workers that it decoded on; None: not told
    moves: list[RequestMove] = field(default_factory=list)
    is_moving: bool = False  # the last move has not shown a token yet
    rest_bytes: int = 0  # KV that is copied while it stands; counted when its next token shows that it arrived

    def note_prefill(self, times: StageTimes) -> None:
        """The first prefill counts; an earlier attempt may have told already."""
        if self.prefill_s is None:
            self.queue_s, self.prefill_s, self.cached_tokens = times.queue_s, times.prefill_s, times.num_cached

    def note_end(self, times: StageTimes, *, handed_over: bool) -> None:
        self.note_prefill(times)  # unless a prefill worker has told
        self.decode_s = (self.decode_s or 0.0) + times.decode_s
        if handed_over:
            self.handoff_s = times.handoff_s

    def moves_to_next(self, move: RequestMove) -> None:
        """It leaves its worker; where it goes on and after how long is known with its next token."""
        if self.is_moving:  # it was lost again before it gave a token
            self.moves[-1] = replace(self.moves[-1], to_worker=move.from_worker)
        self.moves.append(move)
        self.is_moving, self.rest_bytes = True, 0

    def resumed(self, stall_s: float | None) -> RequestMove:
        """The first token after a move."""
        last = self.moves[-1]
        num_bytes = last.num_bytes + self.rest_bytes
        self.moves[-1] = replace(last, to_worker=self.decode_worker, stall_s=stall_s, num_bytes=num_bytes)
        self.is_moving, self.rest_bytes = False, 0
        return self.moves[-1]
