"""One request on one worker, as the scheduler sees it. A record: what is derived is a property."""

from __future__ import annotations

from enum import Enum

from engine.types import WorkKind
from engine.wire import StageTimes, Submit


class SeqState(Enum):
    """Where a sequence is. Leased KV is no sequence any more (`engine.leases`)."""

    WAITING = "waiting"  # in the queue, holds no block
    PREFILLING = "prefilling"  # holds its prompt's blocks
    RESERVED = "reserved"  # decode kind: holds its prompt's blocks, waits for Pull
    PULLING = "pulling"  # somebody writes its blocks
    RUNNING = "running"  # decodes
    ENDED = "ended"  # holds nothing


class Sequence:
    """Tokens, blocks and times of one request. `tokens` is prompt plus all that was sampled; index is position.

    KV of `[0, num_computed)` is in `blocks`. The blocks belong to this sequence from admission until it ends, is
    preempted, or hands them to a lease; `reserved` counts blocks promised to it and not allocated yet.
    """

    __slots__ = (
        "arrival",
        "attempt",
        "blocks",
        "cancelled",
        "deadline_s",
        "end_error",
        "first_scheduled_s",
        "first_token_s",
        "handoff_s",
        "hashes",
        "is_overdue",
        "kind",
        "last_token_s",
        "limit",
        "num_cached",
        "num_computed",
        "num_fetched",
        "num_registered",
        "num_submitted",
        "peer",
        "prefetches_to",
        "priority",
        "pull_began_s",
        "pulled_token",
        "queued_tokens",
        "req_id",
        "reserved",
        "sampling",
        "seq_id",
        "state",
        "stop_ids",
        "submit_s",
        "tokens",
        "yields",
    )

    def __init__(
        self, seq_id: int, peer: str, msg: Submit, *, limit: int, stop_ids: frozenset[int], now_s: float
    ) -> None:
        self.seq_id = seq_id
        self.arrival = seq_id
        self.peer = peer
        self.req_id = msg.req_id
        self.attempt = msg.attempt
        self.kind: WorkKind = msg.kind
        self.priority = msg.priority
        self.sampling = msg.sampling
        self.stop_ids = stop_ids
        self.tokens = list(msg.prompt)
        self.num_submitted = len(self.tokens)
        self.limit = limit  # the sequence ends at this many tokens
        self.deadline_s: float | None = None
        self.state = SeqState.WAITING
        self.cancelled = False  # ends as soon as nobody writes its blocks
        self.is_overdue = False  # its deadline has passed: it ends the same way
        self.end_error = ""  # why, when it was not the peer that cancelled it
        self.blocks: list[int] = []
        self.hashes: list[int] = []
        self.reserved = 0
        self.num_cached = 0  # leading tokens that the first admission found in the prefix cache
        self.num_computed = 0
        self.num_registered = 0  # leading blocks that are in the prefix index
        self.queued_tokens = 0  # tokens to prefill, as this sequence counts in the queue's sum
        self.submit_s = now_s
        self.first_scheduled_s: float | None = None
        self.first_token_s: float | None = None
        self.last_token_s = now_s
        self.pull_began_s = now_s
        self.pulled_token = -1  # decode kind: the first token, which the prefill worker sampled
        self.handoff_s = 0.0
        self.yields = False  # it leaves for another worker at the end of the step that is in flight
        self.prefetches_to: int | None = None  # while leading blocks are copied ahead: how many there are then
        self.num_fetched = 0  # leading blocks that were copied ahead of the Pull

    @property
    def key(self) -> tuple[str, int]:
        return self.req_id, self.attempt

    @property
    def has_started(self) -> bool:
        """Something was done for it here, so it must end here; a sequence that has not may be bounced."""
        return self.state is not SeqState.WAITING or self.first_scheduled_s is not None

    def times(self, now_s: float) -> StageTimes:
        """Durations so far; a stage that was never entered lasts 0."""
        scheduled = self.first_scheduled_s
        first_token = self.first_token_s
        return StageTimes(
            queue_s=(now_s if scheduled is None else scheduled) - self.submit_s,
            prefill_s=0.0
            if scheduled is None or self.kind is WorkKind.DECODE
            else (now_s if first_token is None else first_token) - scheduled,
            handoff_s=self.handoff_s,
            decode_s=0.0 if first_token is None else now_s - first_token,
            num_cached=self.num_cached,
        )
