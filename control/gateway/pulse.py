"""Whether a worker that says nothing is late, or gone. Pure.

A worker's event loop sends its load at least every 0.5 s, also while a long step computes. Silence alone may be a busy
machine, so it only keeps new work away; a process that is stopped (SIGSTOP, a debugger) cannot be busy, so its requests
go on elsewhere at once. Not here: a step that does not end in a process that still beats (`WorkerLink.leave_if_hung`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

#: A heartbeat is missing: whether its process stands still is asked from here on. A proof, so it needs no patience.
ASK_S: Final = 0.5
#: Three are missing: it gets no new work until it is heard of again.
LATE_S: Final = 1.5
#: So long a silence is an end, whatever the process does.
SILENT_S: Final = 20.0


class Pulse(StrEnum):
    BEATS = "beats"
    LATE = "late"  # nothing new goes there
    GONE = "gone"  # what it holds goes on elsewhere


def pulse_of(silent_s: float, stands_still: bool) -> Pulse:
    """What `silent_s` without a message means; `stands_still`: its process is known to be stopped."""
    if silent_s >= SILENT_S or (silent_s >= ASK_S and stands_still):
        return Pulse.GONE
    return Pulse.LATE if silent_s >= LATE_S else Pulse.BEATS
