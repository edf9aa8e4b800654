"""What the operating system says of one thread of this process: the CPU time it used, and whether it wants more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from engine.step_watch import Progress


def of_this_thread() -> Callable[[], Progress]:
    """Ask about the calling thread, from any thread, for as long as it lives."""
    clock = time.pthread_getcpuclockid(threading.get_ident())
    path = f"/proc/self/task/{threading.get_native_id()}/stat"

    def progress() -> Progress:
        with open(path, "rb") as file:
            state = file.read().rpartition(b")")[2].split()[0]
        return Progress(time.clock_gettime(clock), state in (b"R", b"D"))

    return progress
