"""Which tokens the next step computes, and which sequence may take blocks for them. Ints only; time is passed in.

Decided here: order, chunking, admission by KV and by batch, and what happens when KV runs out. Not decided here: who
may send what (`engine.core`), what a block holds (`engine.blocks`), how tokens are computed or sampled (the runner).

One step: first every running sequence gets its next block, then prompts fill `prefill_chunk_tokens` by priority, those
begun first among equals, then by arrival without overtaking: a head that does not fit waits, and so does what is behind
it. A begun prompt pauses for one of better priority, and keeps its KV. A prompt is admitted only when the step has
tokens left for it, so waiting prompts hold no KV and see the newest prefix cache.

Decode slots go by arrival: reservations, which never queue here, take none from a request that came before them, so a
head waits for at most the sequences that were there before it.

When KV runs out (`admission`):

- "reserve" (default): a sequence comes in only if its prompt and all it may generate fit beside the other promises. It
  wastes what is promised and never generated; in exchange a running sequence never stops.
- "preempt": a sequence comes in when its prompt fits. When a running one then finds no block, the newest of the lowest
  priority gives its blocks up and is computed again later; its output is the same, as sampling is stateless.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from itertools import chain, islice

from engine.blocks import BlockPool, block_hashes
from engine.sequence import SeqState, Sequence
from engine.types import DecodeItem, PrefillChunk, StepPlan, WorkKind

ADMISSIONS = ("reserve", "preempt")


class Scheduler:
    """The sequences of one worker, by state. Each is in exactly one of the four dicts, which are in order of entry."""

    __slots__ = (
        "_by_deadline",
        "_head_needs",
        "_queue",
        "held",
        "max_batch",
        "num_preempted",
        "pool",
        "preempts",
        "prefill_chunk_tokens",
        "prefilling",
        "queued_tokens",
        "reserved_blocks",
        "running",
        "waiting",
    )

    def __init__(self, pool: BlockPool, *, max_batch: int, prefill_chunk_tokens: int, admission: str) -> None:
        if admission not in ADMISSIONS:
            raise ValueError(f"admission is {admission!r}, must be one of {', '.join(ADMISSIONS)}")
        for name, value in (("max_batch", max_batch), ("prefill_chunk_tokens", prefill_chunk_tokens)):
            if value < 1:
                raise ValueError(f"{name} is {value}, must be at least 1")
        self.pool = pool
        self.max_batch = max_batch
        self.prefill_chunk_tokens = prefill_chunk_tokens
        self.preempts = admission == "preempt"
        self.waiting: dict[int, Sequence] = {}
        self.prefilling: dict[int, Sequence] = {}
        self.held: dict[int, Sequence] = {}  # reserved or pulling
        self.running: dict[int, Sequence] = {}  # the first max_batch of them decode
        self.reserved_blocks = 0
        self.queued_tokens = 0  # uncached prompt tokens, waiting or in chunks; waiting ones by the cache as it was
        self.num_preempted = 0
        self._queue: list[tuple[int, int, Sequence]] = []  # heap by (priority, arrival); left ones are skipped
        self._by_deadline: list[tuple[float, int, Sequence]] = []
        self._head_needs = 0  # most blocks that the head of the queue needs, when they were not there; else 0

    # --- entering and leaving ------------------------------------------------------------------------------------

    def enqueue(self, seq: Sequence) -> None:
        """Into the queue. It holds nothing until a step has tokens for it."""
        if not seq.hashes:
            seq.hashes = block_hashes(seq.tokens, self.pool.block_tokens)
        num_cached = len(self.pool.match(seq.hashes, self.pool.max_match(len(seq.tokens)))) * self.pool.block_tokens
        self._count_queued(seq, len(seq.tokens) - num_cached)
        seq.state = SeqState.WAITING
        self.waiting[seq.seq_id] = seq
        heapq.heappush(self._queue, (seq.priority, seq.arrival, seq))
        self._watch_deadline(seq)

    def reserve(self, seq: Sequence) -> bool:
        """Take the blocks of a sequence whose KV will be pulled. False when they do not fit beside the queue's head."""
        seq.hashes = block_hashes(seq.tokens, self.pool.block_tokens)
        if not self._take_blocks(seq, beside=self._head_needs if self.waiting else 0):
            return False
        seq.state = SeqState.RESERVED
        self.held[seq.seq_id] = seq
        self._watch_deadline(seq)
        return True

    def _watch_deadline(self, seq: Sequence) -> None:
        if seq.deadline_s is not None:
            heapq.heappush(self._by_deadline, (seq.deadline_s, seq.arrival, seq))

    def start_decode(self, seq: Sequence) -> None:
        """From prefilling or pulling into the decode batch, or by arrival into the line for it."""
        self.prefilling.pop(seq.seq_id, None)
        self.held.pop(seq.seq_id, None)
        seq.state = SeqState.RUNNING
        overtaken = [each for each in islice(self.running.values(), self.max_batch, None) if each.arrival > seq.arrival]
        self.running[seq.seq_id] = seq
        for each in overtaken:  # to the end, in their order: nobody who decodes already is among them
            del self.running[each.seq_id]
            self.running[each.seq_id] = each

    def remove(self, seq: Sequence) -> list[int]:
        """Out, for good. The caller now owns its blocks, and releases them or gives them to a lease."""
        for group in (self.waiting, self.prefilling, self.held, self.running):
            if group.pop(seq.seq_id, None) is not None:
                break
        seq.state = SeqState.ENDED
        return self._strip(seq)

    def _strip(self, seq: Sequence) -> list[int]:
        """Take everything from a sequence; returns the blocks, unreleased."""
        blocks, seq.blocks = seq.blocks, []
        self.reserved_blocks -= seq.reserved
        seq.reserved = 0
        self._count_queued(seq, 0)
        return blocks

    def _count_queued(self, seq: Sequence, tokens: int) -> None:
        self.queued_tokens += tokens - seq.queued_tokens
        seq.queued_tokens = tokens

    # --- blocks --------------------------------------------------------------------------------------------------

    def blocks_at_most(self, kind: WorkKind, num_tokens: int, limit: int) -> int:
        """Blocks that a sequence can ever need. The last token is sampled, never fed, so its KV needs no room."""
        last = num_tokens if kind is WorkKind.PREFILL else max(num_tokens, limit - 1)
        return -(-last // self.pool.block_tokens)

    def _take_blocks(self, seq: Sequence, beside: int = 0) -> bool:
        """Give `seq` its prompt's blocks, cached ones shared, and promise it the rest. False: no room, none taken."""
        pool = self.pool
        num_tokens = len(seq.tokens)
        matched = pool.match(seq.hashes, pool.max_match(num_tokens))
        total = -(-num_tokens // pool.block_tokens)
        later = 0 if self.preempts else self.blocks_at_most(seq.kind, num_tokens, seq.limit) - total
        needs = total - len(matched) + later + pool.num_unheld(matched)
        if needs + beside > pool.num_available - self.reserved_blocks:
            return False
        pool.share(matched)
        seq.blocks = matched + pool.allocate(total - len(matched))
        seq.reserved = later
        self.reserved_blocks += later
        seq.num_registered = len(matched)
        seq.num_computed = len(matched) * pool.block_tokens
        if seq.first_scheduled_s is None:
            seq.num_cached = seq.num_computed
        return True

    def _grow(self, seq: Sequence) -> bool:
        """One more block for a running sequence. False when it was preempted itself."""
        if seq.reserved:
            seq.reserved -= 1
            self.reserved_blocks -= 1
        else:
            assert self.preempts, f"sequence {seq.req_id} outgrew its reservation"
            while self.pool.num_available <= self.reserved_blocks:
                victim = max((*self.running.values(), *self.prefilling.values()), key=_last_served)
                self._preempt(victim)
                if victim is seq:
                    return False
        seq.blocks += self.pool.allocate(1)
        return True

    def extend(self, seq: Sequence, num_blocks: int) -> bool:
        """More blocks for a sequence that is not in any step. False, and none taken, when they are not there."""
        promised = min(seq.reserved, num_blocks)
        if num_blocks - promised > self.pool.num_available - self.reserved_blocks:
            return False
        seq.reserved -= promised
        self.reserved_blocks -= promised
        seq.blocks += self.pool.allocate(num_blocks)
        return True

    def _preempt(self, victim: Sequence) -> None:
        """Back into the queue with all its tokens; its full blocks stay cached as long as nobody needs them."""
        self.num_preempted += 1
        self.running.pop(victim.seq_id, None)
        self.prefilling.pop(victim.seq_id, None)
        self.pool.release(self._strip(victim))
        victim.num_computed = victim.num_registered = 0
        victim.hashes = block_hashes(victim.tokens, self.pool.block_tokens, victim.hashes)
        self.enqueue(victim)

    def register_computed(self, seq: Sequence) -> None:
        """Put the blocks that became full into the prefix index."""
        full = seq.num_computed // self.pool.block_tokens
        if full <= seq.num_registered:
            return
        if len(seq.hashes) < full:
            seq.hashes = block_hashes(seq.tokens, self.pool.block_tokens, seq.hashes)
        for index in range(seq.num_registered, full):
            self.pool.register(seq.blocks[index], seq.hashes[index])
        seq.num_registered = full

    # --- one step ------------------------------------------------------------------------------------------------

    def plan(self, step_id: int, now_s: float) -> StepPlan | None:
        """The next step's work; None when there is none. Every sequence in it stays as it is until it is completed."""
        decode = self._plan_decode() if self.running else []
        prefill = self._plan_prefill(now_s) if self.prefilling or self.waiting else []
        if not decode and not prefill:
            return None
        return StepPlan(step_id, tuple(prefill), tuple(decode))

    @property
    def num_decoding(self) -> int:
        """Sequences that decode, or will: who runs, holds a reservation, or waits here to compute its prompt."""
        local = sum(1 for seq in chain(self.waiting.values(), self.prefilling.values()) if seq.kind is WorkKind.LOCAL)
        return len(self.running) + len(self.held) + local

    def decode_batch(self) -> Iterable[Sequence]:
        """The sequences that decode now: the longest-running `max_batch`."""
        return islice(self.running.values(), self.max_batch)

    def _plan_decode(self) -> list[DecodeItem]:
        block_tokens = self.pool.block_tokens
        num_preempted = self.num_preempted
        items = []
        for seq in list(self.decode_batch()):
            tokens = seq.tokens
            position = len(tokens) - 1
            if position >= len(seq.blocks) * block_tokens and (
                seq.state is not SeqState.RUNNING or not self._grow(seq)
            ):
                continue
            items.append(DecodeItem(seq.seq_id, tokens[position], position, seq.blocks, seq.sampling))
        if num_preempted != self.num_preempted:
            items = [item for item in items if item.seq_id in self.running]
        return items

    def _plan_prefill(self, now_s: float) -> list[PrefillChunk]:
        budget = self.prefill_chunk_tokens
        chunks = []
        begun = deque(sorted(self.prefilling.values(), key=_priority))
        while budget > 0:
            seq = self._admit_next(now_s, before=begun[0].priority if begun else None)
            if seq is None:
                if not begun:
                    break
                seq = begun.popleft()
            chunks.append(_chunk(seq, budget))
            budget -= len(chunks[-1].token_ids)
        return chunks

    def _admit_next(self, now_s: float, *, before: int | None) -> Sequence | None:
        """The head of the queue, with its blocks; None when it must wait, or has no better priority than `before`."""
        while self._queue and self._queue[0][2].state is not SeqState.WAITING:
            heapq.heappop(self._queue)
        if not self._queue or (before is not None and self._queue[0][0] >= before):
            return None
        seq = self._queue[0][2]
        if seq.kind is not WorkKind.PREFILL and self._num_slots_before(seq) >= self.max_batch:
            return None
        if not self._take_blocks(seq):
            self._head_needs = self.blocks_at_most(seq.kind, len(seq.tokens), seq.limit)
            return None
        heapq.heappop(self._queue)
        self._head_needs = 0
        del self.waiting[seq.seq_id]
        seq.state = SeqState.PREFILLING
        self.prefilling[seq.seq_id] = seq
        self._count_queued(seq, len(seq.tokens) - seq.num_computed)
        if seq.first_scheduled_s is None:
            seq.first_scheduled_s = now_s
        return seq

    def _num_slots_before(self, seq: Sequence) -> int:
        """Decode slots in use or spoken for, less those of reservations that came after `seq`."""
        taken = chain(self.running.values(), self.held.values(), self.prefilling.values())
        return sum(1 for each in taken if each.kind is WorkKind.LOCAL or _reserved_before(each, seq))

    def computed(self, seq: Sequence, end: int) -> None:
        """A chunk of `seq` is done: its KV is there for [0, end)."""
        seq.num_computed = end
        self._count_queued(seq, len(seq.tokens) - end)
        self.register_computed(seq)

    # --- the queue's clock ---------------------------------------------------------------------------------------

    def take_overdue(self, now_s: float) -> list[Sequence]:
        """The sequences whose deadline has passed, each once, in whatever state; ending them is the caller's."""
        overdue = []
        while self._by_deadline and self._by_deadline[0][0] <= now_s:
            _, _, seq = heapq.heappop(self._by_deadline)
            if seq.state is not SeqState.ENDED and not seq.is_overdue:
                overdue.append(seq)
        return overdue

    @property
    def next_deadline_s(self) -> float | None:
        while self._by_deadline and self._by_deadline[0][2].state is SeqState.ENDED:
            heapq.heappop(self._by_deadline)
        return self._by_deadline[0][0] if self._by_deadline else None

    def oldest_wait_s(self, now_s: float) -> float:
        first = next(iter(self.waiting.values()), None)
        return 0.0 if first is None else max(0.0, now_s - first.submit_s)


def _priority(seq: Sequence) -> int:
    return seq.priority


def _last_served(seq: Sequence) -> tuple[int, int]:
    """Larger is preempted first: the lowest priority (largest number), and of those the newest."""
    return seq.priority, seq.arrival


def _reserved_before(each: Sequence, seq: Sequence) -> bool:
    return each.kind is WorkKind.DECODE and each.arrival < seq.arrival


def _chunk(seq: Sequence, budget: int) -> PrefillChunk:
    """The next tokens of a prompt, at most `budget`; it samples when they end it."""
    start = seq.num_computed
    end = min(len(seq.tokens), start + budget)
    sample = seq.sampling if end == len(seq.tokens) else None
    return PrefillChunk(seq.seq_id, tuple(seq.tokens[start:end]), start, tuple(seq.blocks), sample)
