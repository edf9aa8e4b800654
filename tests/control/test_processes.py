"""Processes by pid and start time. The children here are short scripts; each test ends what it started."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.processes import (
    ProcessId,
    end_processes,
    identify,
    last_line,
    port_is_free,
    rotate_log,
    send_signal,
    spawn,
    tree_of,
    wait_ended,
)

SLEEPER = "import sys, time; print('up', flush=True); time.sleep(600)"
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEPER!r}]).wait()"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[ProcessId]]:
    """Whatever a test puts in here is killed afterwards, by id."""
    found: list[ProcessId] = []
    yield found
    for each in found:
        for one in tree_of(each):
            send_signal(one, signal.SIGKILL)


def start(code: str, log: Path, started: list[ProcessId]) -> ProcessId:
    root, child = spawn([sys.executable, "-c", code], {}, log, log.parent)
    started.append(root)
    while "up" not in log.read_text():
        assert child.poll() is None, log.read_text()
    return root


def test_a_process_is_known_by_pid_and_start_time(tmp_path: Path, started: list[ProcessId]) -> None:
    root = start(SLEEPER, tmp_path / "log", started)
    assert root.is_alive
    assert identify(root.pid) == root
    assert not ProcessId(root.pid, root.started_unix_s - 100.0).is_alive


def test_a_pid_that_belongs_to_somebody_else_now_is_not_signalled(tmp_path: Path, started: list[ProcessId]) -> None:
    root = start(SLEEPER, tmp_path / "log", started)
    stranger = ProcessId(root.pid, root.started_unix_s + 1000.0)
    assert not send_signal(stranger, signal.SIGKILL)
    assert end_processes([stranger], 0.1) == []
    assert root.is_alive


def test_the_tree_has_the_root_first_and_its_children(tmp_path: Path, started: list[ProcessId]) -> None:
    root = start(PARENT, tmp_path / "log", started)
    tree = tree_of(root)
    assert tree[0] == root
    assert len(tree) == 2
    assert all(each.is_alive for each in tree)


def test_ending_asks_first_and_kills_what_does_not_listen(tmp_path: Path, started: list[ProcessId]) -> None:
    polite, stubborn = (start(code, tmp_path / name, started) for code, name in ((SLEEPER, "a"), (STUBBORN, "b")))
    assert end_processes([polite, stubborn], 0.5) == [stubborn]
    assert wait_ended([polite, stubborn], 5.0) == []


def test_ending_what_has_ended_is_nothing(tmp_path: Path, started: list[ProcessId]) -> None:
    root = start(SLEEPER, tmp_path / "log", started)
    end_processes([root], 5.0)
    assert end_processes([root], 5.0) == []
    assert tree_of(root) == []


def test_a_spawned_process_leads_a_session_of_its_own(tmp_path: Path, started: list[ProcessId]) -> None:
    root = start(SLEEPER, tmp_path / "log", started)
    assert os.getsid(root.pid) == root.pid != os.getsid(0)


def test_a_used_port_is_not_free() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not port_is_free("127.0.0.1", port)
    assert port_is_free("127.0.0.1", port)


def test_a_log_under_the_bound_is_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("x" * 10)
    assert not rotate_log(log, max_bytes=10)
    assert not rotate_log(tmp_path / "absent.log")


def test_rotation_keeps_two_old_logs_and_the_writer_keeps_its_file(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    with open(log, "a") as writer:
        for text in ("first\n", "second\n", "third\n"):
            writer.write(text)
            writer.flush()
            assert rotate_log(log, max_bytes=2)
        writer.write("fourth\n")
    assert log.read_text() == "fourth\n"
    assert [(tmp_path / f"a.log.{index}").read_text() for index in (1, 2)] == ["third\n", "second\n"]
    assert not (tmp_path / "a.log.3").exists()


def test_the_last_line_that_says_something_is_quoted(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("one\nTypeError: two\n\n  \n")
    assert last_line(log) == "TypeError: two"
    assert last_line(tmp_path / "absent") == ""
