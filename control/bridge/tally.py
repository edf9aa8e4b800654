"""What one engine has been given by us, and how full that makes it. Pure: time is an argument.

Decided here: `Load` from our own requests. What others send to the same engine is not in it; the engine queues that by
itself. The speed at which it computes prompts is derived: prompt tokens whose answers have begun, over the seconds in
which at least one was being waited for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from control.bridge.engine_http import Shape
from engine.types import Load, WorkKind
from engine.wire import Submit


@dataclass(slots=True)
class Work:
    """One submission. `asked_s`: when the engine was asked; None: room is promised, nothing is asked yet."""

    ask: Submit
    peer: str
    begun_s: float
    asked_s: float | None = None
    first_s: float | None = None
    num_tokens: int = 0  # that the engine has given, or was given as given already
    starts_behind_first: bool = False  # the engine is asked for what follows the first token, which another one gave

    @property
    def key(self) -> tuple[str, int]:
        return self.ask.req_id, self.ask.attempt

    @property
    def num_left(self) -> int:
        """New tokens that this request may still have."""
        ask = self.ask
        return ask.sampling.max_tokens - (len(ask.prompt) - ask.num_prompt)

    @property
    def is_computing(self) -> bool:
        """Its prompt is being computed, or its KV fetched."""
        return self.asked_s is not None and self.first_s is None

    @property
    def computes_prompt(self) -> bool:
        return self.is_computing and self.ask.kind is not WorkKind.DECODE


@dataclass(slots=True)
class PromptClock:
    """Prompt tokens computed, and the seconds in which any were."""

    tokens: int = 0
    seconds: float = 0.0
    _since_s: float | None = None

    def note(self, num_computing: int, now_s: float) -> None:
        """Call before and after every change of what is being computed."""
        if self._since_s is not None:
            self.seconds += max(0.0, now_s - self._since_s)
        self._since_s = now_s if num_computing else None


def load_of(works: Iterable[Work], num_leased: int, clock: PromptClock, shape: Shape, now_s: float) -> Load:
    """As a worker of our own says it."""
    queued = num_waiting = num_running = num_decoding = held = reserved = 0
    oldest_s = 0.0
    for work in works:
        size = len(work.ask.prompt) + work.num_tokens
        if work.ask.kind is not WorkKind.PREFILL:
            num_decoding += 1
            reserved += blocks_of(len(work.ask.prompt) + work.num_left, shape)
        else:
            held += blocks_of(size, shape)
        if work.computes_prompt:
            queued += len(work.ask.prompt)
            num_waiting += 1
            oldest_s = max(oldest_s, now_s - work.begun_s)
        elif work.first_s is not None:
            num_running += 1
    return Load(
        queued_prefill_tokens=queued,
        num_waiting=num_waiting,
        num_running=num_running,
        num_leased=num_leased,
        kv_blocks_total=shape.kv_blocks,
        kv_blocks_held=min(held, shape.kv_blocks),
        kv_blocks_reserved=min(reserved, max(0, shape.kv_blocks - held)),
        oldest_wait_s=oldest_s,
        num_decoding=num_decoding,
        prefill_tokens=clock.tokens,
        prefill_steps_s=clock.seconds,
    )


def blocks_of(num_tokens: int, shape: Shape) -> int:
    return -(-num_tokens // shape.block_tokens)
