"""How long a gateway's event loop had work and no core: the machine is crowded, or its CPU quota is used up.

What a process uses of a core says nothing of what it could have used. Linux counts the rest: time on a run queue
(https://docs.kernel.org/scheduler/sched-stats.html). Used and waited together are the share of time in which the loop
had work; at 1 it never rests, however little it is given.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_SCHEDSTAT: Final = Path("/proc/thread-self/schedstat")


def cpu_waited_s(path: Path = _SCHEDSTAT) -> float | None:
    """Of the thread that asks, since it began; None where the system does not count it."""
    try:
        _, waited_ns, _ = path.read_bytes().split()
        return int(waited_ns) / 1e9
    except (OSError, ValueError):
        return None
