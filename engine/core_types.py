"""What goes into an engine core and what comes out of it, and the checks of what a gateway submits. Values only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import msgspec

from engine.types import KvLayout, ModelConfig, SamplingParams
from engine.wire import Lease, Message, Submit, TokenEvent

#: Below it a softmax would overflow, and only the most likely token has a chance anyway: ask for greedy (0).
MIN_TEMPERATURE: Final = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreConfig:
    """One worker's fixed values. `weight_dtype_bytes` and `kv_dtype_bytes` are for the arithmetic of work only."""

    model: ModelConfig
    layout: KvLayout
    num_blocks: int
    worker_id: str
    epoch: int
    max_batch: int = 16
    prefill_chunk_tokens: int = 128
    max_queue: int = 64
    lease_s: float = 30.0
    reserve_s: float | None = None  # how long a reservation waits for its Pull; None: lease_s
    kv_dtype_bytes: float = 4.0
    weight_dtype_bytes: float = 4.0
    admission: str = "reserve"  # or "preempt"; see engine.scheduler
    unix_offset_s: float = 0.0  # Unix time minus the clock of `now_s`
    address: str = ""  # what a lease says of its holder; `EngineCore.set_endpoint` changes it later
    pool_path: str = ""
    host_id: str = ""


@dataclass(slots=True)
class Outbox:
    """What one peer has to be told: token events (they go into one `Step`) and messages, each in order.

    `after`: messages that speak of tokens, so they are sent after the events."""

    events: list[TokenEvent] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    after: list[Message] = field(default_factory=list)


class PullPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Copy source_blocks[i] of the holder into own_blocks[i], for all i; the cached prefix is left out already.

    `first_block_to_copy` is how many leading blocks of the prompt that prefix covers. The own blocks belong to the
    sequence and stay so until `pull_done`. An empty list: nothing to copy, acknowledge at once.
    """

    req_id: str
    attempt: int
    lease: Lease
    source_blocks: list[int]
    own_blocks: list[int]
    first_block_to_copy: int
    num_tokens: int
    token_ids: list[int] = []  # the prompt, for those who check what was copied


def check_submit(msg: Submit, model: ModelConfig) -> tuple[str, str] | None:
    """Why a submit can never be served here, as (code, detail); None when it can."""
    num_tokens = len(msg.prompt)
    if num_tokens == 0:
        return "invalid", "prompt is empty, it must hold at least 1 token"
    if not 1 <= msg.num_prompt <= num_tokens:
        return "invalid", f"num_prompt is {msg.num_prompt}, must be 1..{num_tokens} (the tokens in prompt)"
    lowest, highest = min(msg.prompt), max(msg.prompt)
    if lowest < 0 or highest >= model.vocab_size:
        wrong = lowest if lowest < 0 else highest
        return "invalid", f"prompt holds token {wrong}, must be 0..{model.vocab_size - 1}"
    wrong_sampling = sampling_problem(msg.sampling)
    if wrong_sampling:
        return "invalid", wrong_sampling
    if num_tokens >= model.max_context:
        return "too_long", f"prompt has {num_tokens} tokens, at most {model.max_context - 1} leave room for one more"
    if num_tokens >= msg.num_prompt + msg.sampling.max_tokens:
        sent = num_tokens - msg.num_prompt
        return "invalid", f"{sent} tokens were sent already, max_tokens is {msg.sampling.max_tokens}: nothing is left"
    return None


def sampling_problem(params: SamplingParams) -> str:
    """Which value no token can be drawn with, and its bound; "" when there is none. NaN is outside of all bounds."""
    if params.temperature != 0 and not MIN_TEMPERATURE <= params.temperature < math.inf:
        return f"temperature is {params.temperature}, must be 0 or a finite number of at least {MIN_TEMPERATURE}"
    if not 0.0 < params.top_p <= 1.0:
        return f"top_p is {params.top_p}, must be in (0, 1]"
    if params.top_k < 0:
        return f"top_k is {params.top_k}, must be at least 0"
    if params.max_tokens < 1:
        return f"max_tokens is {params.max_tokens}, must be at least 1"
    return ""


def lease_problem(own: KvLayout, lease: Lease, num_tokens: int) -> str:
    """Why KV under `lease` cannot become that of a prompt of `num_tokens` here, naming the field; "" when it can."""
    difference = own.difference(lease.layout)
    if difference:
        return f"layout.{difference}"
    if lease.num_tokens != num_tokens:
        return f"lease.num_tokens is {lease.num_tokens}, the prompt has {num_tokens}"
    num_blocks = -(-num_tokens // own.block_tokens)
    if len(lease.blocks) != num_blocks:
        return f"lease.blocks holds {len(lease.blocks)} blocks, {num_tokens} tokens take {num_blocks}"
    return ""
