"""What a plane and the bridge of an attached fleet tell each other by files in the run folder: where the bridge
listens, written by the bridge, and where the engines are kept that a controller lists, written by the plane.

Decided here: its form, that a file which cannot be read is as none, and that one process at a time holds a fleet's
bridge: a lock, which the kernel takes back when that process ends.
"""

from __future__ import annotations

import fcntl
import os
import zlib
from pathlib import Path
from typing import IO

import msgspec

from control.fleets.attached.types import Attachment
from control.processes import ProcessId


class Bridged(msgspec.Struct, frozen=True):
    """One engine that gateways can be sent to. `problem`: why it cannot now; "" when it can."""

    worker_id: str
    address: str
    epoch: int
    problem: str = ""


class BridgeFile(msgspec.Struct, frozen=True):
    """`pid` and `started_unix_s`: the process, so that a leftover of one that has ended is known as such. `url`: where
    clients reach the gateway that runs in it."""

    pid: int
    started_unix_s: float
    workers: list[Bridged]
    url: str = ""

    @property
    def is_alive(self) -> bool:
        return ProcessId(self.pid, self.started_unix_s).is_alive


def bridge_folder(run_dir: Path, fleet_id: str) -> Path:
    """Of all that a bridge keeps."""
    return run_dir / "attached" / fleet_id


def bridge_path(run_dir: Path, fleet_id: str) -> Path:
    return bridge_folder(run_dir, fleet_id) / "bridge.json"


def listed_path(run_dir: Path, told: Attachment) -> Path:
    """Where the engines are kept that its controller lists. Another controller under the same name has another list."""
    words = f"{told.kind} {told.controller}"
    return bridge_folder(run_dir, told.name) / f"listed-{zlib.crc32(words.encode()):08x}.json"


def write_bridge(path: Path, content: BridgeFile) -> None:
    """In one step. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    scratch = path.with_suffix(f".{os.getpid()}.new")
    scratch.write_bytes(msgspec.json.encode(content))
    os.replace(scratch, path)


def read_bridge(path: Path) -> BridgeFile | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=BridgeFile)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def served_at(run_dir: Path, fleet_id: str) -> BridgeFile | None:
    """What serves this fleet now; None: nothing does."""
    found = read_bridge(bridge_path(run_dir, fleet_id))
    return found if found is not None and found.is_alive else None


def hold_bridge(path: Path) -> IO[str] | None:
    """The right to be this fleet's bridge, until it is closed; None while another process has it. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = open(path.with_suffix(".lock"), "a")  # noqa: SIM115  it is held for as long as the bridge lives
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock
