"""How long a step takes on a device that is not here: a roofline over the work, and tokens from a seeded sequence.

Decided here: the time of one forward = max(FLOPs / achievable FLOP/s, bytes / achievable bytes/s) + a fixed overhead,
and the time of a handoff = bytes / link + overhead. Not decided here: peaks and efficiencies, which come from
data/devices.toml and data/models.toml (`engine.devices`), each with its provenance. Whatever is timed by this module is
simulated and marked so.

Left out, and so optimistic: the attention kernel's own efficiency at long contexts, and handoffs that disturb steps.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

from engine.types import DecodeItem, ModelConfig, Phase, PhaseTiming, PrefillChunk, StepPlan, StepResult
from engine.work import ModelWork, prefill_sums

_MASK = 2**64 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """One model on one worker's device (or tensor-parallel group: the peaks are the group's). Plain values.

    Efficiencies are the achievable fraction of the peak, in (0, 1]; overheads are seconds per forward (launches,
    sampling, scheduling). Raises ValueError naming the field, its value and the bound.
    """

    model: ModelConfig
    peak_flops: float
    peak_bytes_per_s: float
    weight_dtype_bytes: float = 2.0
    kv_dtype_bytes: float = 2.0
    compute_efficiency: float = 0.6
    bandwidth_efficiency: float = 0.8
    prefill_overhead_s: float = 0.005
    decode_overhead_s: float = 0.002
    handoff_bytes_per_s: float = 40e9
    handoff_overhead_s: float = 0.002
    provenance: str = "assumed"
    work: ModelWork = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("peak_flops", "peak_bytes_per_s", "weight_dtype_bytes", "kv_dtype_bytes", "handoff_bytes_per_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"cost model: {name} is {getattr(self, name)}, must be above 0 and finite")
        for name in ("compute_efficiency", "bandwidth_efficiency"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"cost model: {name} is {getattr(self, name)}, must be above 0 and at most 1")
        for name in ("prefill_overhead_s", "decode_overhead_s", "handoff_overhead_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"cost model: {name} is {getattr(self, name)}, must be at least 0 and finite")
        object.__setattr__(self, "work", ModelWork(self.model, self.weight_dtype_bytes, self.kv_dtype_bytes))

    def forward_seconds(self, flops: float, num_bytes: float) -> float:
        """Roofline: the slower of computing and moving, without overhead."""
        compute_s = flops / (self.peak_flops * self.compute_efficiency)
        return max(compute_s, num_bytes / (self.peak_bytes_per_s * self.bandwidth_efficiency))

    def prefill_seconds(self, tokens: int, pairs: int, context_sum: int, sampled_tokens: int) -> float:
        """One prefill forward over packed chunks; `pairs` and `context_sum` are sums over them."""
        flops = self.work.prefill_flops(tokens, pairs, sampled_tokens)
        return self.prefill_overhead_s + self.forward_seconds(
            flops, self.work.prefill_bytes(tokens, context_sum, sampled_tokens)
        )

    def decode_seconds(self, context_sum: int, batch: int) -> float:
        """One decode forward of `batch` sequences."""
        flops = self.work.decode_flops(context_sum, batch)
        return self.decode_overhead_s + self.forward_seconds(flops, self.work.decode_bytes(context_sum, batch))

    def handoff_seconds(self, num_tokens: int) -> float:
        """Moving the KV of `num_tokens` tokens from one worker's memory to another's, over an idle link."""
        return self.handoff_overhead_s + num_tokens * self.work.kv_token_bytes / self.handoff_bytes_per_s

    def step_timings(self, plan: StepPlan, now_s: float) -> tuple[PhaseTiming, ...]:
        """The forwards of one step that begins at `now_s`, prefill first. No CPU is used, so `cpu_s` is 0."""
        timings: list[PhaseTiming] = []
        if plan.prefill:
            end_s = now_s + self._prefill_plan_seconds(plan.prefill)
            timings.append(PhaseTiming(Phase.PREFILL, now_s, end_s, 0.0))
            now_s = end_s
        if plan.decode:
            end_s = now_s + self._decode_plan_seconds(plan.decode)
            timings.append(PhaseTiming(Phase.DECODE, now_s, end_s, 0.0))
        return tuple(timings)

    def _prefill_plan_seconds(self, chunks: tuple[PrefillChunk, ...]) -> float:
        return self.prefill_seconds(*prefill_sums(chunks))

    def _decode_plan_seconds(self, items: tuple[DecodeItem, ...]) -> float:
        context_sum = len(items)
        for item in items:
            context_sum += item.position
        return self.decode_seconds(context_sum, len(items))


def seeded_token(seed: int, position: int, vocab_size: int) -> int:
    """The token of a paced sequence at `position`: splitmix64 of (seed, position), the same on every worker."""
    mixed = (seed * 0x9E3779B97F4A7C15 + (position + 1) * 0xD1B54A32D192ED03) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return (mixed ^ (mixed >> 31)) % vocab_size


class SeededTokens:
    """The tokens of paced and simulated workers. Ids in `avoid` (end of sequence) never come: length ends a request."""

    __slots__ = ("_avoid", "_vocab_size")

    def __init__(self, vocab_size: int, avoid: Container[int] = ()) -> None:
        self._vocab_size = vocab_size
        self._avoid = avoid

    def token(self, seed: int, position: int) -> int:
        token = seeded_token(seed, position, self._vocab_size)
        for _ in range(self._vocab_size):
            if token not in self._avoid:
                break
            token = (token + 1) % self._vocab_size
        return token

    def sample(self, plan: StepPlan) -> dict[int, int]:
        """What a runner would sample: the position after a chunk that ends its prompt, or after a decode item."""
        token = self.token
        tokens = {item.seq_id: token(item.sample.seed, item.position + 1) for item in plan.decode}
        for chunk in plan.prefill:
            if chunk.sample is not None:
                tokens[chunk.seq_id] = token(chunk.sample.seed, chunk.start + len(chunk.token_ids))
        return tokens


def paced_result(plan: StepPlan, cost: CostModel, tokens: SeededTokens, now_s: float) -> StepResult:
    """The result of a step that begins at `now_s`; it ends at the last timing's `end_s`, and not before."""
    return StepResult(tokens.sample(plan), cost.step_timings(plan, now_s))
