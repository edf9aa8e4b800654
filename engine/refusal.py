"""Whether a worker takes what a gateway submits: never, not now, or yes. Nothing changes by asking.

Not decided here: what becomes of a request that is taken, and whether its KV blocks are free now (`engine.scheduler`).
"""

from __future__ import annotations

from engine.completion import Completion
from engine.core_types import check_submit
from engine.duty import Duty
from engine.types import WorkerState, WorkKind
from engine.wire import Submit


def refusal_of(msg: Submit, duty: Duty, work: Completion, now_s: float) -> tuple[str, str] | None:
    """Why a submit is not admitted, as (code, detail); None when it may come in."""
    config, scheduler = work.config, work.scheduler
    if not duty.admits(msg.kind):
        if duty.state is WorkerState.READY or duty.state is WorkerState.UNASSIGNED:
            return "role", f"a worker with role {duty.role} does not admit {msg.kind} work"
        return "draining", f"the worker is {duty.state}: {duty.reason}"
    invalid = check_submit(msg, config.model)
    if invalid is not None:
        return invalid
    if (msg.req_id, msg.attempt) in work.by_key:
        return "invalid", f"request {msg.req_id} attempt {msg.attempt} is here already"
    limit = min(msg.num_prompt + msg.sampling.max_tokens, config.model.max_context)
    needs = scheduler.blocks_at_most(msg.kind, len(msg.prompt), limit)
    if needs > config.num_blocks:
        return "too_long", f"the request may need {needs} KV blocks, this worker has {config.num_blocks}"
    if msg.deadline_unix_s is not None and msg.deadline_unix_s - config.unix_offset_s <= now_s:
        return "deadline", "the request's deadline has passed"
    if msg.kind is WorkKind.DECODE:
        if scheduler.num_decoding >= config.max_batch + config.max_queue:
            return (
                "queue_full",
                f"{config.max_batch} sequences decode and {config.max_queue} wait, the most allowed",
            )
    elif len(scheduler.waiting) >= config.max_queue:
        return "queue_full", f"{config.max_queue} requests wait, the most allowed"
    return None
