"""Whether a worker that says nothing, or whose step does not end, is late or gone. Pure.

A worker's event loop sends its load at least every 0.5 s, also while a long step computes, and at once when that step
becomes overdue by what its like took (`engine.step_watch`). Silence alone may be a busy machine, so it only keeps new
work away; what the operating system says of the process is proof: one that is stopped (SIGSTOP, a debugger), or whose
threads all sleep and used no CPU time while beats were due, cannot be busy, so its requests go on elsewhere at once.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

#: Nothing came for so long from one that has work: whether its process is stopped is asked from here on. A proof, so
#: it needs no patience.
ASK_S: Final = 0.1
#: Three beats are missing: it gets no new work until it is heard of again.
LATE_S: Final = 1.5
#: So long without a beat and without any use of a CPU is an end.
FROZEN_S: Final = 1.0
#: So long a silence is an end, whatever the process does.
SILENT_S: Final = 20.0
#: Limits that a step runs for before its worker is taken for hung.
GONE_LIMITS: Final = 2.0


class Pulse(StrEnum):
    BEATS = "beats"
    LATE = "late"  # nothing new goes there
    GONE = "gone"  # what it holds goes on elsewhere


def pulse_of(silent_s: float, *, is_stopped: bool = False, frozen_s: float = 0.0) -> Pulse:
    """What `silent_s` without a message means. `is_stopped`: its process is known to be. `frozen_s`: for so long, while
    it was late, its process is known to have slept without using a CPU."""
    if silent_s >= SILENT_S or (silent_s >= ASK_S and is_stopped) or (silent_s >= LATE_S and frozen_s >= FROZEN_S):
        return Pulse.GONE
    return Pulse.LATE if silent_s >= LATE_S else Pulse.BEATS


def pulse_of_step(limits: float) -> Pulse:
    """What it means that the running step has run for so many times its limit."""
    if limits >= GONE_LIMITS:
        return Pulse.GONE
    return Pulse.LATE if limits >= 1.0 else Pulse.BEATS
