"""What SQLite keeps of the history when its writer is killed, and when the power fails.

    python bench/durability.py [--kills 500] [--crash-points 300] [--json]

A writer calls the product's `History.write_tick` and `record_command`. Each batch holds a hash of the one before it
and of its own content, and is told through a pipe once it is committed. Then:

- kill -9 at random moments, 500 times; the next writer goes on with the same database;
- power failures: strace records the writer's system calls on the database and its log, and the files are built anew
  as they may be on the disk at many moments: of what was not synced nothing, or any subset in any state of tearing.
  The shared-memory index is left out; SQLite makes it anew.

After each: the database is whole (integrity_check), every batch that was told is there, the chain is whole, and of no
batch is a part there. A batch is points, cursor, record, and each fifth time a command with its desired state.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from _history_check import Findings, check
from _history_writer import tell, write_batches
from _power_failure import fail_power, traced_calls

KILLS_A_DATABASE: Final = 25


def kill_writers(folder: Path, num_kills: int, dice: random.Random) -> Findings:
    """Kill so many writers, each at a moment of its own; the next one goes on with the same database."""
    found, told, seen = Findings(), 0, 0
    path = folder / "history.db"
    for number in range(num_kills):
        if number % KILLS_A_DATABASE == 0:
            told = seen = 0
            for each in folder.glob("history.db*"):
                each.unlink()
        told = max(told, killed_writer(path, dice.uniform(0.0, 0.4)))
        seen = check(path, told, found, seen)
        found.num_told += told if number % KILLS_A_DATABASE == KILLS_A_DATABASE - 1 or number == num_kills - 1 else 0
    return found


def killed_writer(path: Path, after_s: float) -> int:
    """Run a writer for so long; the last batch that it told. A fork: the moment counts, not the imports."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            write_batches(f"sqlite:///{path}", lambda line: tell(writing, line), sys.maxsize)
        finally:
            os._exit(1)
    os.close(writing)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with open(reading, "rb") as pipe:
        lines = pipe.read().split(b"\n")
    return int(lines[-2].split()[0]) if len(lines) > 1 else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--crash-points", type=int, default=300)
    parser.add_argument("--subsets", type=int, default=3, help="random subsets of what was not synced, at each point")
    parser.add_argument("--batches", type=int, default=200, help="of the writer whose power fails")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    dice, num_problems = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory(prefix="phaseline-durability-") as name:
        for title, findings in crashes(Path(name), options, dice):
            said = json.dumps({title: msgspec.to_builtins(findings)}) if options.json else _words(title, findings)
            print(said, flush=True)
            num_problems += len(findings.problems)
    if num_problems:
        raise SystemExit(1)


def crashes(folder: Path, options: argparse.Namespace, dice: random.Random) -> Iterator[tuple[str, Findings]]:
    """Each kind of crash and what it left, as it comes."""
    yield "kill -9", kill_writers(folder, options.kills, dice)
    calls = traced_calls(folder, options.batches)
    title = f"power fails ({len(calls)} calls, {sum(each.kind == 'sync' for each in calls)} syncs)"
    yield title, fail_power(folder, calls, options.crash_points, options.subsets, dice)


def _words(title: str, found: Findings) -> str:
    lines = [
        f"{title}: {found.num_crashes} crashes, {found.num_told} batches told",
        f"  told and lost {found.num_lost}, torn {found.num_torn}, not whole {found.num_broken}; "
        f"at most {found.most_untold} durable and not told",
    ]
    return "\n".join([*lines, *(f"  {problem}" for problem in found.problems)])


if __name__ == "__main__":
    main()
