"""The live sequences of one worker, and what becomes of them: tokens out, leases, endings. No admission, no orders.

Decided here: when a sequence ends and why, who then owns its blocks, and which latencies are counted. Every block that
a sequence owned is, when it ends, either released to the pool or taken over by a lease.

A stop token is part of the output: it is the last token of the event whose `finish` is `stop`, and the gateway, which
owns text, leaves it out. The first token after a handoff is not sent again: the gateway has it from `Prefilled`.
"""

from __future__ import annotations

from engine.blocks import BlockPool
from engine.core_types import CoreConfig, Outbox
from engine.leases import LeaseBook
from engine.meter import Meter
from engine.scheduler import Scheduler
from engine.sequence import Sequence
from engine.step_meter import StepMeter
from engine.step_watch import StepAge
from engine.types import DecodeItem, FinishReason, Load, PrefillChunk, StepPlan, StepResult, WorkKind
from engine.wire import Lease, Prefilled, Rejected, TokenEvent, Yielded


class Completion:
    """All sequences that have come in and not ended, by id, by (req_id, attempt) and by peer."""

    def __init__(self, config: CoreConfig, meter: Meter | None) -> None:
        self.config = config
        self.scheduler = Scheduler(
            BlockPool(config.num_blocks, config.layout.block_tokens),
            max_batch=config.max_batch,
            prefill_chunk_tokens=config.prefill_chunk_tokens,
            admission=config.admission,
        )
        self.leases = LeaseBook(f"{config.worker_id}-{config.epoch}", config.lease_s)
        self.meter = StepMeter(meter, config)
        self.endpoint = (config.address, config.pool_path, config.host_id)
        self.seqs: dict[int, Sequence] = {}
        self.by_key: dict[tuple[str, int], Sequence] = {}
        self.by_peer: dict[str, dict[int, Sequence]] = {}
        self.num_by_kind = dict.fromkeys(WorkKind, 0)
        self._prefill_tokens = 0
        self._prefill_steps_s = 0.0
        self._outbox: dict[str, Outbox] = {}

    def load(self, now_s: float, step: StepAge) -> Load:
        scheduler, pool = self.scheduler, self.scheduler.pool
        num_running = min(len(scheduler.running), scheduler.max_batch)
        return Load(
            queued_prefill_tokens=scheduler.queued_tokens,
            num_waiting=len(scheduler.waiting) + len(scheduler.running) - num_running,
            num_running=num_running,
            num_leased=len(self.leases),
            kv_blocks_total=pool.num_blocks,
            kv_blocks_held=pool.num_held,
            kv_blocks_reserved=scheduler.reserved_blocks,
            oldest_wait_s=scheduler.oldest_wait_s(now_s),
            num_decoding=scheduler.num_decoding,
            max_batch=scheduler.max_batch,
            prefill_tokens=self._prefill_tokens,
            prefill_steps_s=self._prefill_steps_s,
            step_running_s=step.running_s,
            step_limit_s=step.limit_s,
        )

    def take_outbox(self) -> dict[str, Outbox]:
        outbox, self._outbox = self._outbox, {}
        return outbox

    def _box(self, peer: str) -> Outbox:
        box = self._outbox.get(peer)
        if box is None:
            box = self._outbox[peer] = Outbox()
        return box

    # --- coming and going ----------------------------------------------------------------------------------------

    def enter(self, seq: Sequence) -> None:
        self.seqs[seq.seq_id] = seq
        self.by_key[seq.key] = seq
        self.by_peer.setdefault(seq.peer, {})[seq.seq_id] = seq
        self.num_by_kind[seq.kind] += 1

    def mute(self, peer: str) -> None:
        """Nobody is there to be told any more."""
        for seq in self.by_peer.pop(peer, {}).values():
            seq.peer = ""
        self._outbox.pop(peer, None)

    def _leave(self, seq: Sequence) -> list[int]:
        """Out of everything. The caller now owns the blocks."""
        del self.seqs[seq.seq_id]
        del self.by_key[seq.key]
        own = self.by_peer.get(seq.peer)
        if own is not None:
            own.pop(seq.seq_id, None)
            if not own:
                del self.by_peer[seq.peer]
        self.num_by_kind[seq.kind] -= 1
        return self.scheduler.remove(seq)

    def discard(self, seq: Sequence) -> None:
        """Forget a sequence and release its blocks; telling its peer is the caller's."""
        if seq.seq_id in self.seqs:
            self.scheduler.pool.release(self._leave(seq))

    def reject(self, seq: Sequence, code: str, detail: str, retry_after_s: float = 0.0) -> None:
        """Tell the peer that nothing of its request is held here any more."""
        self.discard(seq)
        if seq.peer:
            self._box(seq.peer).messages.append(Rejected(seq.req_id, seq.attempt, code, detail, retry_after_s))

    def end_cancelled(self, seq: Sequence, now_s: float) -> None:
        """End a sequence before its time: cancelled by its peer, past its deadline, or with an error of this worker."""
        if seq.is_overdue:
            self.reject(seq, "deadline", f"the deadline passed after {len(seq.tokens) - seq.num_submitted} tokens here")
            return
        finish = FinishReason.ERROR if seq.end_error else FinishReason.CANCELLED
        if seq.peer:
            times = seq.times(now_s)
            event = TokenEvent(seq.req_id, seq.attempt, len(seq.tokens), [], finish, seq.end_error, times)
            self._box(seq.peer).events.append(event)
        self.discard(seq)

    def release_lease(self, lease_id: str) -> bool:
        lease = self.leases.take(lease_id)
        if lease is None:
            return False
        self.scheduler.pool.release(lease.blocks)
        return True

    # --- a finished step -----------------------------------------------------------------------------------------

    def finish_step(self, plan: StepPlan, result: StepResult, now_s: float) -> None:
        tokens = result.tokens
        if plan.prefill:
            self._prefill_tokens += sum([len(chunk.token_ids) for chunk in plan.prefill])
            self._prefill_steps_s += result.timings[-1].end_s - result.timings[0].start_s
        for chunk in plan.prefill:
            self._finish_chunk(chunk, tokens, now_s)
        if plan.decode:
            self._finish_decode(plan.decode, tokens, now_s)

    def _finish_chunk(self, chunk: PrefillChunk, tokens: dict[int, int], now_s: float) -> None:
        seq = self.seqs[chunk.seq_id]
        self.scheduler.computed(seq, chunk.start + len(chunk.token_ids))
        if seq.cancelled:
            self.end_cancelled(seq, now_s)
        elif chunk.sample is not None:
            self._take_first(seq, tokens[chunk.seq_id], now_s)

    def _take_first(self, seq: Sequence, token: int, now_s: float) -> None:
        """A prompt is computed and its next token sampled: lease it, decode it, or end it."""
        self._count_first(seq, now_s)
        position = len(seq.tokens)
        finish = self._finish_of(seq, token, position)
        if seq.kind is WorkKind.PREFILL:
            self._finish_prefill(seq, token, finish, now_s)
            return
        seq.tokens.append(token)
        self._tell(seq, position, token, finish, now_s)
        if finish is None:
            self.scheduler.start_decode(seq)
        else:
            self._finish(seq, now_s)

    def _count_first(self, seq: Sequence, now_s: float) -> None:
        if seq.first_token_s is None:
            scheduled = seq.submit_s if seq.first_scheduled_s is None else seq.first_scheduled_s
            seq.first_token_s = now_s
            self.meter.latency("queue", scheduled - seq.submit_s)
            self.meter.latency("prefill", now_s - scheduled)
            self.meter.latency("ttft", now_s - seq.submit_s)
        else:  # computed again after a preemption
            self.meter.latency("itl", now_s - seq.last_token_s)
        seq.last_token_s = now_s

    def _finish_prefill(self, seq: Sequence, token: int, finish: FinishReason | None, now_s: float) -> None:
        """The prompt of a prefill request is ready; its blocks go to a lease, or back when the request is over."""
        num_tokens, times = len(seq.tokens), seq.times(now_s)
        blocks = self._leave(seq)
        lease = None
        if finish is not None:
            self.scheduler.pool.release(blocks)
        else:
            lease = self._grant(seq, blocks, num_tokens, now_s)
        if seq.peer:
            message = Prefilled(seq.req_id, seq.attempt, token, finish, lease, times)
            self._box(seq.peer).messages.append(message)

    def _grant(self, seq: Sequence, blocks: list[int], num_tokens: int, now_s: float) -> Lease:
        held = self.leases.grant(seq.req_id, seq.attempt, blocks, num_tokens, now_s)
        address, pool_path, host_id = self.endpoint
        return Lease(
            held.lease_id,
            self.config.worker_id,
            self.config.epoch,
            address,
            self.config.layout,
            num_tokens,
            list(blocks),
            pool_path,
            host_id,
            self.config.lease_s,
        )

    def _finish_decode(self, items: tuple[DecodeItem, ...], tokens: dict[int, int], now_s: float) -> None:
        seqs, block_tokens = self.seqs, self.scheduler.pool.block_tokens
        gaps: dict[float, int] = {}  # time of the token before -> sequences; in a steady batch there is one
        for item in items:
            seq = seqs[item.seq_id]
            if seq.cancelled:
                self.end_cancelled(seq, now_s)
                continue
            token = tokens[item.seq_id]
            position = item.position + 1
            seq.tokens.append(token)
            seq.num_computed = position
            if position % block_tokens == 0:
                self.scheduler.register_computed(seq)
            last_s = seq.last_token_s
            gaps[last_s] = gaps.get(last_s, 0) + 1
            seq.last_token_s = now_s
            if token in seq.stop_ids or position + 1 >= seq.limit:
                self._tell(seq, position, token, self._finish_of(seq, token, position), now_s)
                self._finish(seq, now_s)
                continue
            if seq.peer:
                self._box(seq.peer).events.append(TokenEvent(seq.req_id, seq.attempt, position, [token]))
            if seq.yields:
                self.hand_over(seq, now_s)
        for last_s, count in gaps.items():
            self.meter.latency("itl", now_s - last_s, count)

    def _finish_of(self, seq: Sequence, token: int, position: int) -> FinishReason | None:
        """Does the token at `position` end the request?"""
        if token in seq.stop_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if position + 1 >= seq.limit else None

    def _tell(self, seq: Sequence, position: int, token: int, finish: FinishReason | None, now_s: float) -> None:
        if seq.peer:
            times = None if finish is None else seq.times(now_s)
            event = TokenEvent(seq.req_id, seq.attempt, position, [token], finish, "", times)
            self._box(seq.peer).events.append(event)

    def _finish(self, seq: Sequence, now_s: float) -> None:
        """A sequence has all its tokens. `tpot` is over the gaps after its first token here (or after its handoff)."""
        num_gaps = len(seq.tokens) - seq.num_submitted - 1
        if num_gaps > 0 and seq.first_token_s is not None:
            self.meter.latency("tpot", (now_s - seq.first_token_s) / num_gaps)
        self.meter.latency("e2e", now_s - seq.submit_s)
        self.discard(seq)

    # --- leaving for another worker ------------------------------------------------------------------------------

    def offer(self, seq: Sequence, now_s: float) -> Lease | None:
        """A lease over the full blocks of a sequence that runs on: nobody writes those again. None: there is none."""
        blocks = seq.blocks[: seq.num_computed // self.scheduler.pool.block_tokens]
        if not blocks:
            return None
        self.scheduler.pool.share(blocks)
        return self._grant(seq, blocks, len(blocks) * self.scheduler.pool.block_tokens, now_s)

    def hand_over(self, seq: Sequence, now_s: float) -> None:
        """End a running sequence here; its blocks go to a lease. All its tokens have been told, or are about to be."""
        times, num_tokens = seq.times(now_s), seq.num_computed
        num_blocks = -(-num_tokens // self.scheduler.pool.block_tokens)
        blocks = self._leave(seq)
        self.scheduler.pool.release(blocks[num_blocks:])
        lease = self._grant(seq, blocks[:num_blocks], num_tokens, now_s)
        if seq.peer:
            self._box(seq.peer).after.append(Yielded(seq.req_id, seq.attempt, lease, "", times))

    # --- a finished copy -----------------------------------------------------------------------------------------

    def start_pulled(self, seq: Sequence, now_s: float) -> None:
        """The prompt's KV has come from elsewhere, with the token that follows it: feed that token next."""
        seq.handoff_s = now_s - seq.pull_began_s
        self.meter.latency("queue", seq.pull_began_s - seq.submit_s)
        self.meter.latency("handoff", seq.handoff_s)
        self.scheduler.computed(seq, len(seq.tokens))
        position = len(seq.tokens)
        seq.tokens.append(seq.pulled_token)
        seq.first_token_s = seq.last_token_s = now_s
        finish = self._finish_of(seq, seq.pulled_token, position)
        if finish is None:
            self.scheduler.start_decode(seq)
            return
        if seq.peer:
            event = TokenEvent(seq.req_id, seq.attempt, position + 1, [], finish, "", seq.times(now_s))
            self._box(seq.peer).events.append(event)
        self._finish(seq, now_s)
