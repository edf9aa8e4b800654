"""How full an engine is, as far as our own requests make it."""

from __future__ import annotations

from control.bridge.engine_http import Shape
from control.bridge.tally import PromptClock, Work, load_of
from engine.types import SamplingParams, WorkKind
from engine.wire import Submit

SHAPE = Shape(model="m", block_tokens=16, kv_blocks=100)


def work(kind: WorkKind, num_prompt: int, max_tokens: int, **fields: float | int | None) -> Work:
    ask = Submit("r", 1, kind, [1] * num_prompt, num_prompt, SamplingParams(max_tokens=max_tokens))
    return Work(ask, "gateway:g", 0.0, **fields)  # type: ignore[arg-type]


def test_room_is_kept_for_an_answer_before_anything_is_asked():
    load = load_of([work(WorkKind.DECODE, 32, 32)], 0, PromptClock(), SHAPE, 1.0)
    assert (load.kv_blocks_reserved, load.kv_blocks_room, load.num_decoding, load.num_running) == (4, 96, 1, 0)


def test_a_prompt_waits_until_its_first_token():
    waiting = work(WorkKind.LOCAL, 40, 8, asked_s=0.5)
    load = load_of([waiting], 0, PromptClock(), SHAPE, 2.0)
    assert (load.queued_prefill_tokens, load.num_waiting, load.oldest_wait_s) == (40, 1, 2.0)
    waiting.first_s = 2.0
    load = load_of([waiting], 0, PromptClock(), SHAPE, 2.0)
    assert (load.queued_prefill_tokens, load.num_running) == (0, 1)


def test_a_handed_over_prompt_is_no_prompt_to_compute():
    load = load_of([work(WorkKind.DECODE, 40, 8, asked_s=0.5)], 3, PromptClock(), SHAPE, 2.0)
    assert (load.queued_prefill_tokens, load.num_leased) == (0, 3)


def test_the_clock_runs_only_while_a_prompt_is_computed():
    clock = PromptClock()
    clock.note(1, 10.0)
    clock.note(2, 11.0)
    clock.note(0, 13.0)
    clock.note(1, 20.0)
    assert clock.seconds == 3.0
