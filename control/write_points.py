"""Moments of a durable write at which a plane may be killed. Tests pass a hook; in service it does nothing.

Decided here: which moments a write has, and how PHASELINE_CRASH_AT, or a fault scenario's file, names one. That every
write has them is decided in `Transactions.writing`, the one way into a write transaction, so a new write is covered
without being listed anywhere.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from control.errors import SettingsError

#: Called with "<write>:<moment>", from the thread that writes. It may kill the process, or raise a BaseException.
Reach = Callable[[str], None]
#: before: nothing sent. uncommitted: all statements sent, none durable. after: durable, and nobody knows yet.
MOMENTS: Final = ("before", "uncommitted", "after")
#: For tests of the product only, never a setting: "update_command:after" or, the third time it comes by, "..:after#3".
ENVIRONMENT: Final = "PHASELINE_CRASH_AT"
POINT: Final = re.compile(rf"[a-z_]+:(?:{'|'.join(MOMENTS)})(?:#[1-9]\d*)?")
#: In the run folder, which is its owner's alone: a fault scenario writes a point into it.
FILE_NAME: Final = "crash_at"


def pass_by(_point: str) -> None:
    """What a plane in service does at a write point."""


def crash_point(environment: Mapping[str, str], run_dir: Path | None = None) -> Reach:
    """The hook that kills this process (SIGKILL) where PHASELINE_CRASH_AT asks for it, or a file in the run folder, as
    long as it is there. Raises SettingsError on a bad value."""
    value = environment.get(ENVIRONMENT, "")
    if value and not POINT.fullmatch(value):
        raise SettingsError(f"{ENVIRONMENT} is <write>:<{'|'.join(MOMENTS)}>[#n]", field=ENVIRONMENT, value=value)
    if value:
        return _Crash(lambda: value)
    return pass_by if run_dir is None else _Crash(lambda: _text_of(run_dir / FILE_NAME), run_dir / FILE_NAME)


class _Crash:
    """Counts how often the point that is asked for came by; asked for another one, it begins anew."""

    def __init__(self, asked: Callable[[], str], file: Path | None = None) -> None:
        self._asked = asked
        self._file = file
        self._value = ""
        self._times = 0

    def __call__(self, point: str) -> None:
        value = self._asked()
        if value != self._value:
            self._value, self._times = value, 0
        wanted, _, number = value.partition("#")
        if point != wanted:
            return
        self._times += 1
        if self._times == int(number or "1"):
            if self._file is not None:
                self._file.unlink(missing_ok=True)  # it is meant for one plane
            os.kill(os.getpid(), signal.SIGKILL)


def _text_of(file: Path) -> str:
    """What it asks for; "" when it is not there, or asks for nothing that there is."""
    try:
        text = file.read_text("utf-8")
    except OSError:
        return ""
    return text if POINT.fullmatch(text) else ""
