"""What a database holds after a crash of its writer: whole, nothing lost that was told, nothing torn."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from _history_writer import COMMAND_EACH, FIRST, cursor_of, link_of, tokens_of
from control.history.store import History
from control.points import WorkerCursor


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
        verdict = _integrity(database)
        if verdict != [("ok",)]:
            found.add("num_broken", f"integrity_check: {verdict[:3]}")
            return 0
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'cursors'").fetchone():
            if told:
                found.add("num_lost", f"no tables, and {told} batches were told")
            return 0
        return _check_content(path, database, told, found, seen)


def _integrity(database: sqlite3.Connection) -> list[tuple[str]]:
    """What SQLite says of its own pages; so broken that it cannot even look, that."""
    try:
        return database.execute("PRAGMA integrity_check").fetchall()
    except sqlite3.DatabaseError as error:
        return [(str(error),)]


def _check_content(path: Path, database: sqlite3.Connection, told: int, found: Findings, seen: int) -> int:
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
    if whole := _torn(path, database, number):
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


def _torn(path: Path, database: sqlite3.Connection, number: int) -> str:
    """What does not fit together of what one transaction writes; "" when all does."""
    blob = database.execute("SELECT cursor FROM cursors").fetchone()
    cursor = msgspec.msgpack.decode(blob[0], type=WorkerCursor) if blob else cursor_of(0, 0.0)
    history = History.open(f"sqlite:///{path}")
    totals = history.totals("bench").get(("worker", "w0", "decode"), {})
    history.close()
    tokens, rows = totals.get("tokens", 0.0), totals.get("steps", 0.0)  # a step each
    last_seq = database.execute("SELECT coalesce(max(last_seq), 0) FROM gateway_seqs").fetchone()[0]
    expected = float(sum(tokens_of(each) for each in range(1, number + 1)))
    found = (cursor.num_records, cursor.counters["decode/decode"].tokens, tokens, rows, last_seq)
    return "" if found == (number, expected, expected, number, number) else f"{found} and not {number}, {expected}"
