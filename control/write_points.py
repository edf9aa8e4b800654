"""Moments of a durable write at which a plane may be killed. Tests pass a hook; in service it does nothing.

Decided here: which moments a write has, and how PHASELINE_CRASH_AT names one. That every write has them is decided in
`History._writing`, the one way into a write transaction, so a new write is covered without being listed anywhere.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from itertools import count
from typing import Final

from control.errors import SettingsError

#: Called with "<write>:<moment>", from the thread that writes. It may kill the process, or raise a BaseException.
Reach = Callable[[str], None]
#: before: nothing sent. uncommitted: all statements sent, none durable. after: durable, and nobody knows yet.
MOMENTS: Final = ("before", "uncommitted", "after")
#: For tests of the product only, never a setting: "update_command:after" or, the third time it comes by, "..:after#3".
ENVIRONMENT: Final = "PHASELINE_CRASH_AT"


def pass_by(_point: str) -> None:
    """What a plane in service does at a write point."""


def crash_point(environment: Mapping[str, str]) -> Reach:
    """The hook that PHASELINE_CRASH_AT asks for: SIGKILL to this process. Raises SettingsError on a bad value."""
    value = environment.get(ENVIRONMENT, "")
    if not value:
        return pass_by
    wanted, _, number = value.partition("#")
    if wanted.partition(":")[2] not in MOMENTS or not (number or "1").isdecimal():
        raise SettingsError(f"{ENVIRONMENT} is <write>:<{'|'.join(MOMENTS)}>[#n]", field=ENVIRONMENT, value=value)
    last, times = int(number or "1"), count(1)

    def reach(point: str) -> None:
        if point == wanted and next(times) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    return reach
