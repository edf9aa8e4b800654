"""The values that cross the engine's borders. Nothing here imports torch, and nothing here decides.

One request through the engine, split by phase (times run downward):

    gateway            prefill worker                decode worker
      | submit(decode) ---------------------------------> reserve blocks
      | <------------------------------------------------ Reserved
      | submit(prefill) --> WAITING
      |                     PREFILLING (chunks)
      | <-- Prefilled ----- LEASED (keeps its blocks)
      | pull -------------------------------------------> PULLING  (copies blocks, pool to pool)
      |                     <-------- HandoffAck -------- DECODING
      |                     blocks back to the cache
      | <------------------------------------- tokens --- DECODING ... FINISHED
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Role(StrEnum):
    """What a worker is offered now. A preference of admission, not an ability."""

    UNASSIGNED = "unassigned"
    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"


class Phase(StrEnum):
    """Which of the two kinds of work a step did, whatever the role."""

    PREFILL = "prefill"
    DECODE = "decode"


#: Index of each role and phase in the meter's arrays. Append only: the meter page outlives a version.
ROLES: tuple[Role, ...] = (Role.UNASSIGNED, Role.PREFILL, Role.DECODE, Role.MIXED)
PHASES: tuple[Phase, ...] = (Phase.PREFILL, Phase.DECODE)


class WorkerState(StrEnum):
    """Life of one worker process; the legal moves are in `engine.lifecycle`."""

    STARTING = "starting"  # loading weights, calibrating
    UNASSIGNED = "unassigned"  # ready, waits for the plane to give it a role
    READY = "ready"  # admits work for its role
    DRAINING = "draining"  # admits nothing new, finishes what runs
    DRAINED = "drained"  # idle and closed, by order
    FAILED = "failed"  # says why in `reason`
    STOPPED = "stopped"


class WorkKind(StrEnum):
    """What a gateway asks one worker to do with one request."""

    LOCAL = "local"  # both phases here
    PREFILL = "prefill"  # compute the prompt's KV and the first token, then keep the blocks under a lease
    DECODE = "decode"  # reserve blocks now, pull the KV when told, then decode


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is chosen. Stateless in (seed, position): no generator survives a step.

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 switch those filters off. `seed` is always set
    once a request is admitted. Stop strings are the gateway's; the engine knows only `stop_token_ids`.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    max_tokens: int = 128
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Shape of a Llama-family decoder, as read from a Hugging Face config.json."""

    model_id: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    max_context: int
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    rope_scaling: dict[str, float | str] | None = None
    attention_bias: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()


class KvLayout(msgspec.Struct, frozen=True, kw_only=True):
    """What two workers must agree on before KV moves between them. One block is contiguous:

    pool_NLCPHD: N = blocks, L = layers, C = key/value (2), P = tokens per block, H = KV heads, D = head dim
    """

    model_id: str
    weights_digest: str
    dtype: str
    num_layers: int
    block_tokens: int
    num_kv_heads: int
    head_dim: int

    def difference(self, there: KvLayout) -> str:
        """The first field in which two pools differ, with both values; "" when KV can move between them."""
        for field in self.__struct_fields__:
            mine, other = getattr(self, field), getattr(there, field)
            if mine != other:
                return f"{field} differs: {mine!r} here, {other!r} there"
        return ""

    @property
    def block_bytes(self) -> int:
        """Bytes of one block. dtype: float32, bfloat16, float16, float8, or seeded (paced workers: 8 bytes a token)."""
        if self.dtype == "seeded":
            return self.block_tokens * 8
        size = {"float32": 4, "bfloat16": 2, "float16": 2, "float8": 1}[self.dtype]
        return self.num_layers * 2 * self.block_tokens * self.num_kv_heads * self.head_dim * size


class PrefillChunk(msgspec.Struct, frozen=True):
    """Tokens `[start, start + len(token_ids))` of one sequence, to be computed in one forward.

    KV of `[0, start)` is in the blocks already. `sample` is set when the chunk ends the prompt.
    """

    seq_id: int
    token_ids: tuple[int, ...]
    start: int
    block_table: tuple[int, ...]
    sample: SamplingParams | None


class DecodeItem(msgspec.Struct, frozen=True):
    """One running sequence: feed `token_id` at `position`, write its KV, sample position + 1."""

    seq_id: int
    token_id: int
    position: int
    block_table: tuple[int, ...] | list[int]
    sample: SamplingParams


class StepPlan(msgspec.Struct, frozen=True):
    """One engine step. On a mixed worker the two lists run as two timed forwards, prefill first."""

    step_id: int
    prefill: tuple[PrefillChunk, ...] = ()
    decode: tuple[DecodeItem, ...] = ()


class PhaseTiming(msgspec.Struct, frozen=True):
    """One timed forward: wall interval [start_s, end_s) on the monotonic clock, and thread CPU seconds."""

    phase: Phase
    start_s: float
    end_s: float
    cpu_s: float


class StepResult(msgspec.Struct, frozen=True):
    """What a runner returns: sampled token per seq_id (absent for an unfinished prompt), and its timings."""

    tokens: dict[int, int]
    timings: tuple[PhaseTiming, ...]


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """How full a worker is, sent with every step message and held in the meter page."""

    queued_prefill_tokens: int = 0  # uncached prompt tokens waiting or in chunks
    num_waiting: int = 0
    num_running: int = 0  # sequences in decode
    num_leased: int = 0  # handoffs not acknowledged yet
    kv_blocks_total: int = 0
    kv_blocks_held: int = 0  # referenced by a sequence or lease (cached-only blocks are free)
    kv_blocks_reserved: int = 0  # promised to admitted sequences, not allocated yet
    oldest_wait_s: float = 0.0
    step_running_s: float = 0.0  # of the running step, as `engine.step_watch` counts it; 0 between steps
    step_limit_s: float = 0.0  # from when on that is overdue; 0: no step runs, or an older worker that does not say
    # What the meter page does not hold; 0 from a worker that does not say it yet.
    num_decoding: int = 0  # sequences that decode, or will: running, reserved, or computing their prompt here
    max_batch: int = 0  # of those that decode at the same time
    prefill_tokens: int = 0  # computed since the worker started, in `prefill_steps_s` seconds of steps
    prefill_steps_s: float = 0.0

    @property
    def kv_usage(self) -> float:
        return self.kv_blocks_held / self.kv_blocks_total if self.kv_blocks_total else 0.0

    @property
    def step_overdue(self) -> float:
        """How many limits the running step has run for: overdue from 1 on."""
        return self.step_running_s / self.step_limit_s if self.step_limit_s else 0.0

    @property
    def kv_blocks_room(self) -> int:
        return self.kv_blocks_total - self.kv_blocks_held - self.kv_blocks_reserved
