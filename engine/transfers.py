"""KV that comes to a worker and KV that leaves it, as the core sees it: a handoff's pull, both ends of a migration.

Decided here: which blocks are copied into which, and what a finished or failed copy means to its sequence. Not here:
how bytes move (`engine.handoff`), who asks for it (the gateway), and how a sequence ends (`engine.completion`).

A migration (times run downward; the source decodes until it yields):

    gateway                source                     target
      | submit(decode) ---------------------------------> reserve blocks
      | <------------------------------------------------ Reserved
      | offer ------------> leases its full blocks, decodes on
      | <-- Offered ------- |
      | prefetch ---------------------------------------> copies them ahead; they are in its prefix index then
      | <------------------------------------------------ Prefetched
      | yield ------------> ends at the step's end, all KV under a lease
      | <-- Yielded ------- |
      | pull(more) -------------------------------------> copies the rest, decodes
"""

from __future__ import annotations

from engine.completion import Completion
from engine.core_types import PullPlan, lease_problem
from engine.sequence import SeqState, Sequence
from engine.wire import Message, Offer, Offered, Prefetch, Prefetched, Pull, Rejected, Yield, Yielded


class Transfers:
    """The copies of one worker's core. The core settles after each call."""

    def __init__(self, work: Completion) -> None:
        self._work = work
        self._layout = work.config.layout

    # --- the side that copies --------------------------------------------------------------------------------------

    def _reserved(self, peer: str, msg: Pull | Prefetch) -> Sequence | None:
        seq = self._work.by_key.get((msg.req_id, msg.attempt))
        return seq if seq is not None and seq.peer == peer and seq.state is SeqState.RESERVED else None

    def begin_pull(self, peer: str, msg: Pull, now_s: float) -> PullPlan | Rejected:
        seq = self._reserved(peer, msg)
        if seq is None:
            return Rejected(msg.req_id, msg.attempt, "unknown", "no reservation is held for this request")
        problem, code = self._extend(seq, msg.more), "handoff"
        if not problem:
            problem, code = lease_problem(self._layout, msg.lease, len(seq.tokens)), "layout"
        if problem:
            self._work.discard(seq)
            return Rejected(msg.req_id, msg.attempt, code, problem)
        seq.first_scheduled_s = now_s
        seq.pulled_token = msg.first_token
        return self._plan(seq, msg, max(seq.num_registered, seq.num_fetched), len(msg.lease.blocks), now_s)

    def begin_prefetch(self, peer: str, msg: Prefetch, now_s: float) -> PullPlan | Prefetched:
        seq, lease = self._reserved(peer, msg), msg.lease
        if seq is None:
            return Prefetched(msg.req_id, msg.attempt, 0, error="no reservation is held for this request")
        problem = lease_problem(self._layout, lease, len(lease.blocks) * self._layout.block_tokens)
        if problem:
            return Prefetched(msg.req_id, msg.attempt, 0, error=problem)
        first = seq.num_registered
        end = max(first, min(len(lease.blocks), len(seq.blocks)))
        seq.prefetches_to = end
        return self._plan(seq, msg, first, end, now_s)

    def _plan(self, seq: Sequence, msg: Pull | Prefetch, first: int, end: int, now_s: float) -> PullPlan:
        """Copy blocks [first, end) of the lease."""
        seq.state = SeqState.PULLING
        seq.pull_began_s = now_s
        num_tokens = min(msg.lease.num_tokens, end * self._layout.block_tokens)
        return PullPlan(
            req_id=seq.req_id,
            attempt=seq.attempt,
            lease=msg.lease,
            source_blocks=msg.lease.blocks[first:end],
            own_blocks=seq.blocks[first:end],
            first_block_to_copy=first,
            num_tokens=num_tokens,
            token_ids=seq.tokens[:num_tokens],
        )

    def _extend(self, seq: Sequence, more: list[int]) -> str:
        """Tokens that the source sampled since the reservation, and blocks for them. "" or why not."""
        if not more:
            return ""
        vocab_size, total = self._work.config.model.vocab_size, len(seq.tokens) + len(more)
        if min(more) < 0 or max(more) >= vocab_size:
            return f"more holds tokens {min(more)}..{max(more)}, must be 0..{vocab_size - 1}"
        if total >= seq.limit:
            return f"{total} tokens leave nothing to sample, the sequence ends at {seq.limit}"
        needs = max(0, -(-total // self._layout.block_tokens) - len(seq.blocks))
        if not self._work.scheduler.extend(seq, needs):
            return f"{needs} more KV blocks are not free"
        seq.tokens += more
        seq.num_submitted = total
        return ""

    def pull_done(
        self, req_id: str, attempt: int, ok: bool, now_s: float, detail: str, num_bytes: int
    ) -> list[Message]:
        seq = self._work.by_key.get((req_id, attempt))
        if seq is None or seq.state is not SeqState.PULLING:
            return []
        if seq.cancelled:
            self._work.end_cancelled(seq, now_s)
            return []
        if seq.prefetches_to is not None:
            return [self._prefetched(seq, seq.prefetches_to, ok, now_s, detail, num_bytes)]
        if ok:
            self._work.start_pulled(seq, now_s)
            return []
        self._work.discard(seq)
        return [Rejected(req_id, attempt, "handoff", detail or "the KV could not be copied", 0.0)]

    def _prefetched(
        self, seq: Sequence, num_blocks: int, ok: bool, now_s: float, detail: str, num_bytes: int
    ) -> Prefetched:
        seq.state = SeqState.RESERVED
        seq.prefetches_to = None
        copy_s = now_s - seq.pull_began_s
        if not ok:
            return Prefetched(seq.req_id, seq.attempt, 0, 0, copy_s, detail or "the KV could not be copied")
        block_tokens = self._layout.block_tokens
        seq.num_fetched = num_blocks
        # Blocks whose tokens are all known are good for anybody: also for this request, should its source die.
        seq.num_computed = max(seq.num_computed, min(num_blocks, len(seq.tokens) // block_tokens) * block_tokens)
        self._work.scheduler.register_computed(seq)
        return Prefetched(seq.req_id, seq.attempt, num_blocks * block_tokens, num_bytes, copy_s)

    # --- the side that is copied -----------------------------------------------------------------------------------

    def _running(self, peer: str, msg: Offer | Yield) -> Sequence | None:
        seq = self._work.by_key.get((msg.req_id, msg.attempt))
        is_there = seq is not None and seq.peer == peer and seq.state is SeqState.RUNNING and not seq.cancelled
        return seq if is_there else None

    def offer(self, peer: str, msg: Offer, now_s: float) -> Offered:
        seq = self._running(peer, msg)
        if seq is None:
            return Offered(msg.req_id, msg.attempt, None, "the request does not decode here")
        return Offered(msg.req_id, msg.attempt, self._work.offer(seq, now_s))

    def yield_up(self, peer: str, msg: Yield, now_s: float, *, in_flight: bool) -> list[Message]:
        seq = self._running(peer, msg)
        if seq is None:
            return [Yielded(msg.req_id, msg.attempt, None, "the request does not decode here")]
        if in_flight:
            seq.yields = True
        else:
            self._work.hand_over(seq, now_s)
        return []
