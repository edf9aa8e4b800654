"""Power failures: a writer's system calls as strace saw them, and its files as they may be on the disk at any moment.

Of what was not synced nothing is there, or any subset in any state of tearing. The shared-memory index is left out;
SQLite makes it anew.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import _history_writer
from _history_check import Findings, check

_CALL: Final = re.compile(r"^(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)(?:<[^>]*>)?$")
_ON_FILE: Final = re.compile(r'^(\d+)<([^>]*)>(?:, "((?:\\x[0-9a-f]{2})*)")?(?:, (\d+))?(?:, (\d+))?$')
_NAMED: Final = re.compile(r'^(?:AT_FDCWD(?:<[^>]*>)?, )?"((?:\\x[0-9a-f]{2})*)"')
TRACED: Final = "pwrite64,write,ftruncate,fdatasync,fsync,unlink,unlinkat"


@dataclass(frozen=True, slots=True)
class Call:
    """One system call of the writer. `told`: a batch number instead, said through the pipe."""

    path: str = ""
    kind: str = ""  # write | cut | sync | gone
    offset: int = 0
    data: bytes = b""
    told: int = 0


def traced_calls(folder: Path, num_batches: int) -> list[Call]:
    """Run a writer under strace; its calls on the database's files, in order. Raises SystemExit without strace."""
    if shutil.which("strace") is None:
        raise SystemExit("strace is missing: install Debian's package `strace`")
    log, path = folder / "strace.log", folder / "traced.db"
    trace = ["strace", "-f", "-y", "-xx", "-s", "10000000", "-e", f"trace={TRACED}", "-e", "signal=none", "-o", log]
    writer = [sys.executable, _history_writer.__file__, str(path), str(num_batches)]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([*trace, *writer], check=True, stdout=subprocess.DEVNULL, env=environment)
    with open(log, encoding="ascii") as lines:
        return [call for line in lines if (call := parse(line.rstrip("\n"), str(path))) is not None]


def parse(line: str, path: str) -> Call | None:
    """One line of strace, if it is about the database at `path` or tells a batch. Raises ValueError on a new kind."""
    matched = _CALL.match(line)
    if matched is None:
        if "unfinished" in line or "resumed" in line:
            raise ValueError(f"calls of two threads overlap: {line[:80]}")
        return None
    name, arguments, result = matched.group(1), matched.group(2), int(matched.group(3))
    if result < 0:
        return None
    if name.startswith("unlink"):
        named = _NAMED.match(arguments)
        where = _bytes(named.group(1)).decode() if named else ""
        return Call(where, "gone") if where.startswith(path) else None
    on_file = _ON_FILE.match(arguments)
    if on_file is None:
        return None
    descriptor, where, data, first, second = on_file.groups()
    where = re.sub(r"((?:\\x[0-9a-f]{2})+)", lambda found: _bytes(found.group(1)).decode(), where)
    if name == "write" and descriptor == "1":
        return Call(told=int(_bytes(data or "").split()[0]))
    if not where.startswith(path) or where.endswith("-shm"):
        return None
    if name == "pwrite64":
        return Call(where, "write", int(second), _bytes(data)[:result])
    if name == "ftruncate":
        return Call(where, "cut", int(first))
    if name in ("fsync", "fdatasync"):
        return Call(where, "sync")
    raise ValueError(f"a call on the database that is not understood: {line[:80]}")


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


@dataclass(slots=True)
class Disk:
    """One file: what is surely on the disk, and the calls since the last sync, of which any part may be."""

    image: bytearray = field(default_factory=bytearray)
    unsynced: list[Call] = field(default_factory=list)

    def take(self, call: Call) -> None:
        if call.kind != "sync":
            self.unsynced.append(call)
            return
        for each in self.unsynced:
            _apply(self.image, each)
        self.unsynced = []

    def after_failure(self, dice: random.Random | None) -> bytearray:
        """Without `dice` nothing of what was not synced; with it any subset, some of it torn at a sector."""
        image = bytearray(self.image)
        for call in self.unsynced if dice is not None else ():
            assert dice is not None
            fate = dice.random()
            if fate < 0.45:
                _apply(image, call)
            elif fate < 0.6 and call.kind == "write":
                sectors = dice.randrange(len(call.data) // 512 + 1)
                _apply(image, replace(call, data=call.data[: sectors * 512]))
        return image


def _apply(image: bytearray, call: Call) -> None:
    if call.kind == "cut":
        del image[call.offset :]
        image.extend(bytes(call.offset - len(image)))
    elif call.kind == "write" and call.data:
        image.extend(bytes(max(0, call.offset - len(image))))
        image[call.offset : call.offset + len(call.data)] = call.data


def fail_power(folder: Path, calls: list[Call], num_points: int, num_subsets: int, dice: random.Random) -> Findings:
    """Build the files as they may be at so many moments, and check each."""
    found, disks, told = Findings(), dict[str, Disk](), 0
    points = set(dice.sample(range(len(calls)), min(num_points, len(calls))))
    scratch = folder / "after"
    for index, call in enumerate(calls):
        if call.told:
            told = call.told
        elif call.kind == "gone":
            disks.pop(call.path, None)
        else:
            disks.setdefault(call.path, Disk()).take(call)
        if index in points:
            for each in (None, *(dice for _ in range(num_subsets))):
                check(_rebuilt(scratch, disks, each), told, found)
    found.num_told = told
    return found


def _rebuilt(scratch: Path, disks: dict[str, Disk], dice: random.Random | None) -> Path:
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for path, disk in disks.items():
        image = disk.after_failure(dice)
        if image:
            (scratch / Path(path).name).write_bytes(image)
    return scratch / "traced.db"
