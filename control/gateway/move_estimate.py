"""Should a running sequence leave a worker that drains, and how: moved, recomputed, or left to finish. Pure.

    move       copy its KV while it decodes on, stop it for the rest of the copy       (costs bytes on the link)
    recompute  compute its KV anew elsewhere                                           (costs a prefill)
    finish     leave it where it is: the drain waits for it

All times are in seconds and from what was measured lately; None is unknown, and then moving is tried: it costs least if
the guess is wrong. `rest_tokens` is an upper bound, as nobody knows where a model stops.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from control.routing import FleetView, WorkerView

#: Steps of the source that a move takes besides the copy: the one at whose end the sequence stops.
MOVE_STEPS: Final = 1
#: Steps of the target that a stopped sequence waits for: the rest of the one that runs there, and its own first one.
STALL_STEPS: Final = 1.5
#: With so few tokens to go it ends sooner than any move is set up.
SHORT_REST_TOKENS: Final = 4


class MoveChoice(StrEnum):
    MOVE = "move"
    RECOMPUTE = "recompute"
    FINISH = "finish"


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveFacts:
    """One sequence, its worker, and what copying and computing cost here."""

    rest_tokens: int  # at most
    kv_tokens: int
    kv_bytes: int
    step_s: float | None = None  # of the source
    target_step_s: float | None = None
    stop_s: float | None = None  # what a stop took lately beside the target's steps: messages and the last blocks
    handoff_bytes_per_s: float | None = None
    prefill_tokens_per_s: float | None = None
    queued_prefill_tokens: int = 0  # where it would be computed anew, ahead of it
    has_target: bool = True
    is_moving_known: bool = True  # source and target both know how


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveEstimate:
    choice: MoveChoice
    reason: str
    rest_s: float | None
    move_s: float | None
    recompute_s: float | None
    stall_s: float | None  # how long its stream stands if it is moved


@dataclass(frozen=True, slots=True)
class _Times:
    """Seconds that the facts come to; None: unknown."""

    rest_s: float | None
    move_s: float | None
    recompute_s: float | None
    stall_s: float | None


@dataclass(frozen=True, slots=True)
class _Rule:
    choice: MoveChoice
    when: str  # for the docs
    holds: Callable[[MoveFacts, _Times], bool]
    reason: Callable[[MoveFacts, _Times], str]


def _is_sooner_finished(_facts: MoveFacts, times: _Times) -> bool:
    return times.rest_s is not None and times.move_s is not None and times.rest_s <= times.move_s


def _is_computed_in_a_step(facts: MoveFacts, times: _Times) -> bool:
    return times.recompute_s is not None and facts.step_s is not None and times.recompute_s <= facts.step_s


#: The first rule that holds decides.
RULES: Final = (
    _Rule(
        MoveChoice.FINISH,
        "no other worker has room for its tokens and the rest",
        lambda facts, _: not facts.has_target,
        lambda facts, _: f"no other worker has room for {facts.kv_tokens + facts.rest_tokens} tokens",
    ),
    _Rule(
        MoveChoice.FINISH,
        "source or target is of a version that cannot move what runs",
        lambda facts, _: not facts.is_moving_known,
        lambda facts, _: "an older worker takes part, which cannot move what runs",
    ),
    _Rule(
        MoveChoice.FINISH,
        f"at most {SHORT_REST_TOKENS} tokens are left",
        lambda facts, _: facts.rest_tokens <= SHORT_REST_TOKENS,
        lambda facts, _: f"at most {facts.rest_tokens} tokens are left",
    ),
    _Rule(
        MoveChoice.FINISH,
        "the rest (tokens x step time) takes no longer than moving (KV bytes / measured rate + one step)",
        _is_sooner_finished,
        lambda _, times: f"the rest takes at most {_ms(times.rest_s)} ms, moving it {_ms(times.move_s)} ms",
    ),
    _Rule(
        MoveChoice.RECOMPUTE,
        "computing its KV anew, behind the shortest prefill queue, takes no longer than one step",
        _is_computed_in_a_step,
        lambda facts, times: (
            f"computing {facts.kv_tokens} tokens anew takes {_ms(times.recompute_s, 1)} ms, less than one step"
        ),
    ),
    _Rule(
        MoveChoice.MOVE,
        "otherwise, and while times are not known yet",
        lambda *_: True,
        lambda facts, _: f"{facts.rest_tokens} tokens may be left, {facts.kv_tokens} tokens of KV to move",
    ),
)


def estimate(facts: MoveFacts) -> MoveEstimate:
    """The choice that frees the source soonest at a fair price, with the reason in words."""
    times = _times(facts)
    rule = next(each for each in RULES if each.holds(facts, times))
    return MoveEstimate(
        choice=rule.choice,
        reason=rule.reason(facts, times),
        rest_s=times.rest_s,
        move_s=times.move_s,
        recompute_s=times.recompute_s,
        stall_s=times.stall_s,
    )


def _times(facts: MoveFacts) -> _Times:
    step_s, rate, prefill, target_s = (
        facts.step_s, facts.handoff_bytes_per_s, facts.prefill_tokens_per_s, facts.target_step_s
    )  # fmt: skip
    return _Times(
        rest_s=None if step_s is None else facts.rest_tokens * step_s,
        move_s=None if step_s is None or not rate else facts.kv_bytes / rate + MOVE_STEPS * step_s,
        recompute_s=None if not prefill else (facts.queued_prefill_tokens + facts.kv_tokens) / prefill,
        stall_s=None if target_s is None or facts.stop_s is None else facts.stop_s + STALL_STEPS * target_s,
    )


def _ms(seconds: float | None, digits: int = 0) -> str:
    return "?" if seconds is None else f"{1000 * seconds:.{digits}f}"


def rules_markdown() -> str:
    """The table for the docs."""
    rows = [f"| {number} | {rule.when} | {rule.choice} |" for number, rule in enumerate(RULES, 1)]
    return "\n".join(["| | first that holds | what happens |", "|---|---|---|", *rows])


def leaving_s(estimates: Sequence[MoveEstimate], per_worker: int) -> float | None:
    """How long until all of these have left, in this order, so many at a time. None: a part of it is unknown.

    What is recomputed leaves at once; what finishes where it is takes no place from those that move.
    """
    ends_s, finished_s = [0.0] * per_worker, 0.0
    for each in estimates:
        took_s = {MoveChoice.MOVE: each.move_s, MoveChoice.FINISH: each.rest_s, MoveChoice.RECOMPUTE: 0.0}[each.choice]
        if took_s is None:
            return None
        if each.choice is MoveChoice.FINISH:
            finished_s = max(finished_s, took_s)
        else:
            heapq.heapreplace(ends_s, ends_s[0] + took_s)
    return max(finished_s, *ends_s)


def queued_ahead(view: FleetView) -> int:
    """Prompt tokens before a sequence that is computed anew: on the emptiest worker that prefills for others."""
    prefilling = [each.queued_prefill_tokens for each in (*view.prefill, *view.mixed) if each.weight > 0]
    return min(prefilling or [each.queued_prefill_tokens for each in view.decode], default=0)


def choose_target(workers: Iterable[WorkerView], needs_tokens: int, avoid: Set[str]) -> str | None:
    """Where a sequence of at most `needs_tokens` fits and adds least: the share of KV in use then, over the weight."""
    fits = [
        each
        for each in workers
        if each.weight > 0
        and each.worker_id not in avoid
        and each.kv_used_tokens + needs_tokens <= each.kv_total_tokens
    ]
    if not fits:
        return None
    return min(
        fits, key=lambda each: ((each.kv_used_tokens + needs_tokens) / each.kv_total_tokens / each.weight, each.slot)
    ).worker_id
