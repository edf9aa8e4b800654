"""At which stage of a request a worker is now, by its own meter page. Pure.

    queued -> prefill -> handoff -> decode -> migrating-source | migrating-target

Decided here: which worker an event means by a stage, and when that is so. A page says what was so when it was last
written, at the end of a step: who acts on it stops the process first, and looks again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Final

from control.types.workers import Role, WorkerState
from engine.readings import MeterReading


class Stage(StrEnum):
    QUEUED = "queued"
    PREFILL = "prefill"
    HANDOFF = "handoff"
    DECODE = "decode"
    MIGRATING_SOURCE = "migrating-source"
    MIGRATING_TARGET = "migrating-target"


def _decodes(each: MeterReading) -> bool:
    return each.role in (Role.DECODE, Role.MIXED)


def _leaves(each: MeterReading) -> bool:
    """It drains, or flips away from decode, and sequences or leases keep it."""
    return each.state is WorkerState.DRAINING and _decodes(each)


#: How far a worker is in a stage: 0 is not at all, and of several the one with the most is meant.
_DEPTH: Final[Mapping[Stage, Callable[[MeterReading], int]]] = {
    Stage.QUEUED: lambda each: 0 if _decodes(each) else each.load.num_waiting,
    Stage.PREFILL: lambda each: 0 if _decodes(each) or each.step_running_s is None else 1,
    Stage.HANDOFF: lambda each: 0 if _decodes(each) else each.load.num_leased,
    Stage.DECODE: lambda each: each.load.num_running if _decodes(each) else 0,
    Stage.MIGRATING_SOURCE: lambda each: each.load.num_running + each.load.num_leased if _leaves(each) else 0,
    Stage.MIGRATING_TARGET: lambda each: (
        each.load.kv_blocks_reserved if _decodes(each) and each.state is WorkerState.READY else 0
    ),
}


def is_at(each: MeterReading, stage: Stage, at_least: int = 1) -> bool:
    """Whether it is in that stage with as many requests (as a target of a migration: reserved blocks)."""
    return each.alive and _DEPTH[stage](each) >= at_least


def worker_at(stage: Stage, readings: Iterable[MeterReading], at_least: int = 1) -> MeterReading | None:
    """The worker that is furthest in that stage; None when nobody is there.

    A migration needs both its ends: nobody is its target unless somebody leaves decode. A page does not say from where
    KV is copied, so of several that have reserved room the one with the most is taken.
    """
    seen = [each for each in readings if each.alive]
    if stage is Stage.MIGRATING_TARGET and not any(is_at(each, Stage.MIGRATING_SOURCE) for each in seen):
        return None
    found = [each for each in seen if is_at(each, stage, at_least)]
    return max(found, key=lambda each: (_DEPTH[stage](each), each.worker_id), default=None)
