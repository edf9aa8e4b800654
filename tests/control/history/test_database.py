"""Opening the history: migrations make the schema; what cannot be opened is one clear line; kill -9 loses nothing."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from control.errors import DatabaseAway, HistoryError
from control.history import schema
from control.history.database import writing
from control.history.store import History
from control.lease import Standing
from tests.control.builders import holder

REPO = Path(__file__).resolve().parents[3]


def test_migrations_make_exactly_the_schema(history: History) -> None:
    with history._transactions.engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, schema.metadata) == []


def test_opening_again_changes_nothing(url: str, opened: Callable[[str], History]) -> None:
    assert taken(opened(url)) == 1
    assert taken(opened(url)) == 2


def taken(history: History) -> int | None:
    """The fence under which the lease was taken, each time by the same holder."""
    lease, _ = history.take_lease("f", holder(), 1.5, Standing(reachable_s=0.0))
    return None if lease is None else lease.fence


def test_a_newer_schema_is_refused_and_left_alone(url: str, opened: Callable[[str], History]) -> None:
    history = opened(url)
    with writing(history._transactions.engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(HistoryError, match="schema that this version does not know"):
        opened(url)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("not a url", "database_url is not a URL"),
        ("mysql://host/db", "mysql is not supported"),
        ("sqlite://", "database_url names no file"),
        ("sqlite:////no/such/folder/history.db", "no folder /no/such/folder"),
        ("postgresql://ann:secret@127.0.0.1:1/db", "cannot be opened"),
    ],
)
def test_what_cannot_be_opened_is_one_line_without_the_password(url: str, words: str) -> None:
    with pytest.raises(HistoryError, match=words) as caught:
        History.open(url)
    assert "\n" not in caught.value.detail
    assert "secret" not in caught.value.detail
    assert caught.value.retry_helps


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    path.write_text("this is not a database, but it is long enough to be looked at" * 100)
    with pytest.raises(HistoryError, match="not a database"):
        History.open(f"sqlite:///{path}")


def test_a_server_that_does_not_answer_may_come_back_and_a_folder_does_not(tmp_path: Path) -> None:
    with pytest.raises(DatabaseAway):
        History.open("postgresql://ann:secret@127.0.0.1:1/db")
    with pytest.raises(HistoryError) as caught:
        History.open(f"sqlite:///{tmp_path}")
    assert not isinstance(caught.value, DatabaseAway)


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match="unable to open database file"):
        History.open(f"sqlite:///{tmp_path}")


def test_a_locked_database_is_an_error_and_not_a_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("control.history.database.BUSY_TIMEOUT_S", 0.05)
    path = tmp_path / "history.db"
    history = History.open(f"sqlite:///{path}")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(HistoryError, match="locked"):
        taken(history)
    other.execute("ROLLBACK")
    assert taken(history) == 1
    history.close()
    other.close()


def test_sqlite_is_durable_and_does_not_block_readers(tmp_path: Path) -> None:
    history = History.open(f"sqlite:///{tmp_path / 'history.db'}")
    with history._transactions.engine.connect() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2  # FULL
        assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1
    with writing(history._transactions.engine) as connection:
        connection.execute(text("INSERT INTO fences VALUES ('f', 7)"))
        assert history.load_desired("f") is None  # beside the writer
    history.close()


_WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from control.accounting import Accountant
from control.history.store import History
from control.lease import Standing
from tests.control.history.test_journal import draft
from tests.control.metered import FakeWorker, observe
history, worker, accountant, second = History.open(sys.argv[1]), FakeWorker(), Accountant("f"), 0
while True:
    worker.step(second, second + 0.5, flops=1)
    second += 1
    history.write_tick(observe(accountant, float(second), worker), accountant.snapshot())
    command = history.record_command(draft(second - 1))
    print(command.command_id, second, flush=True)
"""


@pytest.mark.integration
def test_a_killed_writer_loses_no_committed_command_and_no_point(url: str, opened: Callable[[str], History]) -> None:
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, url, str(REPO)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    try:
        told = [writer.stdout.readline() for _ in range(25)]
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        told += writer.stdout.readlines()
        writer.wait(10)
        writer.stdout.close()
    committed = [int(line.split()[1]) for line in told if line.endswith("\n")]
    history = opened(url)
    assert committed[-1] >= 25
    assert len(history.commands("f", 1000)) >= committed[-1]
    desired = history.load_desired("f")
    assert desired is not None
    assert desired.version >= committed[-1]
    counted = history.load_cursors("f")["w0"].counters["decode/decode"]
    assert history.totals("f")["worker", "w0", "decode"]["flops"] == counted.flops
    with history._transactions.engine.connect() as connection:
        if url.startswith("sqlite"):
            assert connection.execute(text("PRAGMA integrity_check")).scalar() == "ok"
