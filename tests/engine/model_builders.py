"""Short ways to run sequences through a TorchRunner."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.attention import PrefillAttention
from engine.runner import TorchRunner
from engine.types import DecodeItem, PrefillChunk, SamplingParams

GREEDY = SamplingParams()


def random_ids(runner: TorchRunner, count: int, rng: random.Random) -> list[int]:
    return [rng.randrange(runner.model.config.vocab_size) for _ in range(count)]


def blocks_for(runner: TorchRunner, num_tokens: int) -> int:
    return -(-num_tokens // runner.pool.layout.block_tokens)


def logits_at_every_position(runner: TorchRunner, token_ids: Sequence[int], table: Sequence[int]) -> Tensor:
    """One undisturbed prefill of the whole sequence: [S, V]."""
    count = len(token_ids)
    chunk = PrefillChunk(0, tuple(token_ids), 0, tuple(table), GREEDY)
    model, pool = runner.model, runner.pool
    attention = PrefillAttention([chunk], model.shape.num_rows(count), model.shape, pool)
    return model.forward(token_ids, range(count), pool.slots(table, 0, count), attention, pool, range(count))


@dataclass
class Replay:
    """One sequence that is fed again in random pieces; `done` positions are in its blocks."""

    token_ids: list[int]
    table: list[int]
    logits_SV: Tensor
    done: int = 0
    checked: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def left(self) -> int:
        return len(self.token_ids) - self.done

    def chunk(self, seq_id: int, count: int) -> PrefillChunk:
        ids = tuple(self.token_ids[self.done : self.done + count])
        return PrefillChunk(seq_id, ids, self.done, tuple(self.table), GREEDY)

    def item(self, seq_id: int) -> DecodeItem:
        return DecodeItem(seq_id, self.token_ids[self.done], self.done, tuple(self.table), GREEDY)

    def advance(self, count: int, logits_V: Tensor, how: str) -> None:
        self.done += count
        self.checked += 1
        if not torch.equal(logits_V, self.logits_SV[self.done - 1]):
            off = (logits_V - self.logits_SV[self.done - 1]).abs().max().item()
            self.wrong.append(f"{how}: position {self.done - 1} differs by {off:.2e}")


def replay_at_random(runner: TorchRunner, sequences: list[Replay], rng: random.Random, largest_chunk: int) -> None:
    """Feed all sequences to their ends in random steps: some get a chunk, some one decoded token, some wait."""
    while waiting := [i for i, s in enumerate(sequences) if s.left]:
        now = rng.sample(waiting, rng.randint(1, len(waiting)))
        to_prefill = [i for i in now if rng.random() < 0.4]
        counts = {i: rng.randint(1, min(sequences[i].left, largest_chunk)) for i in to_prefill}
        if to_prefill:
            logits_RV = runner.prefill_logits([sequences[i].chunk(i, counts[i]) for i in to_prefill])
            for row, i in enumerate(to_prefill):
                sequences[i].advance(counts[i], logits_RV[row], f"prefill {counts}")
        to_decode = sorted((i for i in now if i not in counts), key=lambda i: -sequences[i].done)
        if to_decode:
            logits_RV = runner.decode_logits([sequences[i].item(i) for i in to_decode])
            for row, i in enumerate(to_decode):
                sequences[i].advance(1, logits_RV[row], f"decode batch {len(to_decode)}")
