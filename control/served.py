"""Which attached fleets the supervisor keeps served (`phaseline serve NAME --detach`): a file for each.

Decided here: the file's form, and that it is what is desired. While it is there, the process is started again whenever
it ends, by this supervisor and the next; once it is gone, the process drains and ends. Not here: how that is done
(`control.serving`), and whether the fleet may be served at all: the process asks the plane, and takes its own file away
when it may not.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

import msgspec

from control.errors import NotFound

FLEET: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """One fleet that is served. `tokenizer`: the folder with the model's tokenizer.json."""

    fleet: str
    tokenizer: str
    port: int


def served_folder(run_dir: Path) -> Path:
    return run_dir / "served"


def served_path(run_dir: Path, fleet: str) -> Path:
    """Raises NotFound for what is no name of a fleet, and might be a path to elsewhere."""
    if not FLEET.fullmatch(fleet):
        raise NotFound(f"no fleet is named {fleet!r}", field="name", value=fleet, bound=FLEET.pattern)
    return served_folder(run_dir) / f"{fleet}.json"


def write_served(run_dir: Path, served: Served) -> None:
    """In one step. Raises OSError."""
    path = served_path(run_dir, served.fleet)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    scratch = path.with_suffix(f".{os.getpid()}.new")
    scratch.write_bytes(msgspec.json.encode(served))
    os.replace(scratch, path)


def read_served(run_dir: Path, fleet: str) -> Served | None:
    """None: it is not to be served, or its file cannot be read."""
    try:
        return msgspec.json.decode(served_path(run_dir, fleet).read_bytes(), type=Served)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def all_served(run_dir: Path) -> tuple[Served, ...]:
    """By name."""
    names = sorted(each.stem for each in served_folder(run_dir).glob("*.json") if FLEET.fullmatch(each.stem))
    found = (read_served(run_dir, each) for each in names)
    return tuple(each for each in found if each is not None)


def remove_served(run_dir: Path, fleet: str) -> bool:
    """False when it was not there."""
    try:
        served_path(run_dir, fleet).unlink()
    except FileNotFoundError:
        return False
    return True
