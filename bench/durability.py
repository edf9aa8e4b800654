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
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import msgspec

from control.history.store import History
from control.points import Ingested, Line, WorkerCursor
from control.types import (
    Action,
    Command,
    CommandState,
    Desired,
    Phase,
    RequestRecord,
    Role,
    RoutingPolicy,
    Verb,
    WorkerState,
)
from engine.readings import PhaseCounters

T0: Final = 1_800_000_000
FIRST: Final = "0" * 64
COMMAND_EACH: Final = 5
KILLS_A_DATABASE: Final = 25
LINE: Final = Line("worker", "w0", "bench", True, 1, "decode")


# --- the writer -------------------------------------------------------------------------------------------------------


def link_of(before: str, number: int) -> str:
    """The hash that batch `number` carries."""
    return hashlib.sha256(f"{before} {number} {tokens_of(number)}".encode()).hexdigest()


def tokens_of(number: int) -> int:
    return 1 + number * 7919 % 101


def write_batches(url: str, told: Callable[[bytes], None], most: int) -> None:
    """Go on where the database ends, until `most` batches are there or somebody ends this process."""
    history = History.open(url)
    cursor = history.load_cursors("bench").get("w0")
    number, tokens = (cursor.num_records, cursor.counters["decode/decode"].tokens) if cursor else (0, 0.0)
    newest = history.request(f"b{number}")
    before = newest.reason if newest else FIRST
    if number and number % COMMAND_EACH == 0 and history.find_by_idempotency(f"b{number}", "bench") is None:
        history.record_command(command_of(history, number, before))  # the last writer died between the two
    while number < most:
        number += 1
        before, tokens = link_of(before, number), tokens + tokens_of(number)
        history.write_tick(
            points_of(number), {"w0": cursor_of(number, tokens)}, [("g", number, record_of(number, before))]
        )
        if number % COMMAND_EACH == 0:
            history.record_command(command_of(history, number, before))
        told(f"{number} {before}\n".encode())
    history.close()


def points_of(number: int) -> Ingested:
    """What batch `number` adds: two rows of one second."""
    row = {"num_s": 1.0, "tokens": float(tokens_of(number)), "steps": 1.0}
    cover = {"num_cover_s": 1.0, "worker_s": 1.0, "device_s": 1.0}
    phases, states = {(LINE, Phase.DECODE, T0 + number): row}, {(LINE, T0 + number): cover}
    return Ingested(fleet_id="bench", at_unix_s=float(T0 + number + 1), phases=phases, states=states)


def cursor_of(number: int, tokens: float) -> WorkerCursor:
    return WorkerCursor(
        epoch=1,
        num_records=number,
        counters={"decode/decode": PhaseCounters(tokens=tokens, steps=float(number))},
        histograms={},
        known_until_unix_s=float(T0 + number + 1),
        role=Role.DECODE,
        state=WorkerState.READY,
        role_since_unix_s=float(T0),
        device_key="",
        open=True,
    )


def record_of(number: int, link: str) -> RequestRecord:
    return RequestRecord(
        request_id=f"b{number}",
        fleet_id="bench",
        model_id="bench",
        gateway_id="g",
        api_key_id="",
        simulated=True,
        arrival_unix_s=float(T0 + number),
        attempt=0,
        priority=0,
        stream=True,
        endpoint="chat",
        rule="remote",
        reason=link,
        prefill_worker="",
        decode_worker="w0",
        prompt_tokens=10,
        cached_tokens=0,
        output_tokens=tokens_of(number),
        max_tokens=128,
        status=200,
        finish_reason="stop",
        error="",
        queue_s=0.0,
        prefill_s=0.1,
        handoff_s=0.0,
        ttft_s=0.2,
        tpot_s=0.04,
        max_gap_s=0.1,
        e2e_s=1.0,
        good=True,
    )


def command_of(history: History, number: int, link: str) -> Command:
    """A command that makes the next desired state."""
    desired = history.load_desired("bench")
    base = desired.version if desired else 0
    after = Desired(version=base + 1, roles={"w0": Role.DECODE}, policy=RoutingPolicy())
    return Command(
        command_id=0,
        fleet_id="bench",
        action=Action(verb=Verb.RESIZE, prefill=0, decode=1),
        state=CommandState.ACCEPTED,
        who="bench",
        why=link,
        idempotency_key=f"b{number}",
        base_version=base,
        version_after=base + 1,
        created_unix_s=float(T0 + number),
        updated_unix_s=float(T0 + number),
        desired_before=desired,
        desired_after=after,
    )


# --- the check --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Findings:
    """Over all crashes. `problems`: the first few, in words."""

    num_crashes: int = 0
    num_told: int = 0
    num_lost: int = 0
    num_torn: int = 0
    num_broken: int = 0
    most_untold: int = 0  # durable batches that nobody was told of
    problems: list[str] = field(default_factory=list)

    def add(self, kind: str, what: str) -> None:
        setattr(self, kind, getattr(self, kind) + 1)
        if len(self.problems) < 5:
            self.problems.append(what)


def check(path: Path, told: int, found: Findings, seen: int = 0) -> int:
    """Open a database after a crash, told up to batch `told`, and `seen` in it before; returns how many it holds."""
    found.num_crashes += 1
    if not path.exists():
        if told:
            found.add("num_lost", f"no database, and {told} batches were told")
        return 0
    with contextlib.closing(sqlite3.connect(path)) as database:
        verdict = database.execute("PRAGMA integrity_check").fetchall()
        if verdict != [("ok",)]:
            found.add("num_broken", f"integrity_check: {verdict[:3]}")
            return 0
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'cursors'").fetchone():
            if told:
                found.add("num_lost", f"no tables, and {told} batches were told")
            return 0
        return _check_content(database, told, found, seen)


def _check_content(database: sqlite3.Connection, told: int, found: Findings, seen: int) -> int:
    rows = database.execute("SELECT seq, record FROM request_records ORDER BY seq").fetchall()
    links = [(seq, json.loads(record)["reason"]) for seq, record in rows]
    before = FIRST
    for expected, (seq, link) in enumerate(links, 1):
        before = link_of(before, expected)
        if (seq, link) != (expected, before):
            found.add("num_torn", f"batch {expected} is {seq} with another hash")
            return 0
    number = len(links)
    if number < max(told, seen):
        found.add("num_lost", f"{told} batches were told and {seen} seen, {number} are there")
    if whole := _torn(database, number):
        found.add("num_torn", f"of batch {number}: {whole}")
    commands = dict(database.execute("SELECT idempotency_key, why FROM commands").fetchall())
    states = database.execute("SELECT count(*) FROM desired_states").fetchone()[0]
    missing = [n for n in range(COMMAND_EACH, told + 1, COMMAND_EACH) if commands.get(f"b{n}") != links[n - 1][1]]
    if missing:
        found.add("num_lost", f"commands {missing}")
    if states != len(commands):
        found.add("num_torn", f"{len(commands)} commands made {states} desired states")
    found.most_untold = max(found.most_untold, number - told)
    return number


def _torn(database: sqlite3.Connection, number: int) -> str:
    """What does not fit together of what one transaction writes; "" when all does."""
    blob = database.execute("SELECT cursor FROM cursors").fetchone()
    cursor = msgspec.msgpack.decode(blob[0], type=WorkerCursor) if blob else cursor_of(0, 0.0)
    tokens, rows = database.execute("SELECT total(tokens), count(*) FROM phase_points WHERE step_s = 1").fetchone()
    last_seq = database.execute("SELECT coalesce(max(last_seq), 0) FROM gateway_seqs").fetchone()[0]
    expected = float(sum(tokens_of(each) for each in range(1, number + 1)))
    found = (cursor.num_records, cursor.counters["decode/decode"].tokens, tokens, rows, last_seq)
    return "" if found == (number, expected, expected, number, number) else f"{found} and not {number}, {expected}"


# --- kill -9 ----------------------------------------------------------------------------------------------------------


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
            write_batches(f"sqlite:///{path}", lambda line: _write_all(writing, line), sys.maxsize)
        finally:
            os._exit(1)
    os.close(writing)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with open(reading, "rb") as pipe:
        lines = pipe.read().split(b"\n")
    return int(lines[-2].split()[0]) if len(lines) > 1 else 0


def _write_all(descriptor: int, line: bytes) -> None:
    assert os.write(descriptor, line) == len(line)


# --- power failures ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    """One system call of the writer. `told`: a batch number instead, said through the pipe."""

    path: str = ""
    kind: str = ""  # write | cut | sync | gone
    offset: int = 0
    data: bytes = b""
    told: int = 0


_CALL: Final = re.compile(r"^(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)(?:<[^>]*>)?$")
_ON_FILE: Final = re.compile(r'^(\d+)<([^>]*)>(?:, "((?:\\x[0-9a-f]{2})*)")?(?:, (\d+))?(?:, (\d+))?$')
_NAMED: Final = re.compile(r'^(?:AT_FDCWD(?:<[^>]*>)?, )?"((?:\\x[0-9a-f]{2})*)"')
TRACED: Final = "pwrite64,write,ftruncate,fdatasync,fsync,unlink,unlinkat"


def traced_calls(folder: Path, num_batches: int) -> list[Call]:
    """Run a writer under strace; its calls on the database's files, in order. Raises SystemExit without strace."""
    if shutil.which("strace") is None:
        raise SystemExit("strace is missing: install Debian's package `strace`")
    log, path = folder / "strace.log", folder / "traced.db"
    trace = ["strace", "-f", "-y", "-xx", "-s", "10000000", "-e", f"trace={TRACED}", "-e", "signal=none", "-o", log]
    writer = [sys.executable, __file__, "--writer", str(path), "--batches", str(num_batches)]
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


# --- the command ------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--crash-points", type=int, default=300)
    parser.add_argument("--subsets", type=int, default=3, help="random subsets of what was not synced, at each point")
    parser.add_argument("--batches", type=int, default=200, help="of the writer whose power fails")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--writer", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.writer:
        write_batches(f"sqlite:///{options.writer}", lambda line: _write_all(1, line), options.batches)
        return
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
