"""How often a worker host has started on this machine, and why the one before ended. One small file per host process.

Decided here: what is known after an end that nobody saw. Not here: who starts the host again (Ray).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from engine.errors import EngineError
from engine.meter_reader import MeterReader
from engine.readings import MeterReading


class HostLife(msgspec.Struct, frozen=True):
    """Starts since the file was made. `epoch` grows with each, also when the clock steps back."""

    num_starts: int = 0
    last_reason: str = ""  # "" for the first start
    epoch: int = 0


def next_life(shm_dir: Path, host_name: str, worker_ids: Sequence[str], now_unix_s: float) -> HostLife:
    """Count one start, with the reason of the last end as the old meter page shows it. Call it before a new one."""
    path = shm_dir / f"{host_name}.life.json"
    try:
        before = msgspec.json.decode(path.read_bytes(), type=HostLife)
    except (OSError, msgspec.MsgspecError):
        before = HostLife()
    reason = end_reason([_last_reading(shm_dir / f"{each}.meter") for each in worker_ids]) if before.num_starts else ""
    life = HostLife(before.num_starts + 1, reason, max(int(now_unix_s * 1000), before.epoch + 1))
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_bytes(msgspec.json.encode(life))
    os.replace(scratch, path)
    return life


def end_reason(pages: Sequence[MeterReading | None]) -> str:
    """What the pages of an ended process tell about its end: the workers in it ended together."""
    lasts = [each for each in pages if each is not None]
    if not lasts:
        return "the process ended before it had a meter"
    last = next((each for each in lasts if each.state == "failed"), lasts[0])
    if last.state == "stopped":
        return f"process {last.pid} stopped in order"
    if last.state == "failed":
        return f"process {last.pid} ended after it had failed: {last.reason}"
    during = "while a step ran" if any(each.step_running_s is not None for each in lasts) else "while idle"
    return f"process {last.pid} ended without a word (killed or crashed) {during}"


def _last_reading(path: Path) -> MeterReading | None:
    try:
        reader = MeterReader(path)
        try:
            return reader.read()
        finally:
            reader.close()
    except EngineError:
        return None
