"""Processes by pid and start time, so that a number the system has given to somebody else is never touched.

Decided here: what "the same process" means, how one is started apart from us, and how one is ended (asked, then killed,
each by id). Not here: which processes there should be (`control.components`) and when (`control.supervisor`).
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
import socket
import subprocess
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

MAX_LOG_BYTES = 10 * 2**20
#: Of the kernel's flags in a process's stat: it is on its way out.
_PF_EXITING = 0x4
NUM_OLD_LOGS = 2


@dataclass(frozen=True, slots=True, order=True)
class ProcessId:
    """One process on this boot of this host: a pid, and when the process with that pid began."""

    pid: int
    started_unix_s: float

    @property
    def name(self) -> str:
        """The program's name; "" when it has ended."""
        process = self.find()
        try:
            return process.name() if process is not None else ""
        except psutil.Error:
            return ""

    @property
    def is_alive(self) -> bool:
        """Runs still (a zombie has ended)."""
        return self.find() is not None

    def find(self) -> psutil.Process | None:
        """psutil's handle, or None when that process has ended, whatever has its pid now."""
        try:
            process = psutil.Process(self.pid)
            # psutil derives the start from the boot time, which may move by a fraction of a second between readers.
            if abs(process.create_time() - self.started_unix_s) > 1.0:
                return None
            return None if process.status() == psutil.STATUS_ZOMBIE else process
        except psutil.Error:
            return None


def identify(pid: int) -> ProcessId | None:
    """Who has this pid now; None when nobody does."""
    try:
        return ProcessId(pid, psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def tree_of(root: ProcessId) -> list[ProcessId]:
    """The process and all below it, parents first; empty when it has ended."""
    process = root.find()
    if process is None:
        return []
    found = [root]
    with contextlib.suppress(psutil.Error):
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                found.append(ProcessId(child.pid, child.create_time()))
    return found


def spawn(
    command: Sequence[str], environment: Mapping[str, str], log: Path, cwd: Path, inherits: Collection[int] = ()
) -> tuple[ProcessId, subprocess.Popen[bytes]]:
    """Start a process in a session of its own, output appended to `log`; it outlives us. Raises OSError.

    `inherits`: descriptors of ours that it gets, under their numbers.

    Output goes to the file directly, not through a pipe, so that it has somewhere to go when we are gone.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as out:
        child = subprocess.Popen(
            list(command),
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            start_new_session=True,
            pass_fds=tuple(inherits),
        )
    return identify(child.pid) or ProcessId(child.pid, time.time()), child


def send_signal(who: ProcessId, number: signal.Signals) -> bool:
    """Signal exactly that process. False when it has ended already."""
    process = who.find()
    if process is None:
        return False
    try:
        process.send_signal(number)  # psutil checks the start time once more
    except psutil.Error:
        return False
    return True


def end_processes(targets: Iterable[ProcessId], limit_s: float) -> list[ProcessId]:
    """Ask each to end, wait up to `limit_s` for all, then kill what is left. Returns those that had to be killed."""
    waiting = [each for each in targets if send_signal(each, signal.SIGTERM)]
    waiting = wait_ended(waiting, limit_s)
    for each in waiting:
        send_signal(each, signal.SIGKILL)
    wait_ended(waiting, 5.0)
    return waiting


def wait_ended(targets: Iterable[ProcessId], limit_s: float) -> list[ProcessId]:
    """Wait until all have ended; returns those that still run after `limit_s`."""
    deadline_s = time.monotonic() + limit_s
    left = [each for each in targets if each.is_alive]
    while left and time.monotonic() < deadline_s:
        time.sleep(0.02)
        left = [each for each in left if each.is_alive]
    return left


def port_is_free(host: str, port: int) -> bool:
    """Whether we could listen there now. Raises OSError where the address itself is not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
    return True


def port_owner(port: int) -> ProcessId | None:
    """Who listens on a port; None when nobody does, or the system does not tell us."""
    with contextlib.suppress(psutil.Error, OSError):
        for each in psutil.net_connections(kind="tcp"):
            if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port and each.pid:
                return identify(each.pid)
    return None


def memory_bytes(who: ProcessId) -> int | None:
    """Proportional set size: shared pages are divided among those who share them. None when it has ended."""
    try:
        lines = Path(f"/proc/{who.pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), None)


def rotate_log(path: Path, max_bytes: int = MAX_LOG_BYTES, num_old: int = NUM_OLD_LOGS) -> bool:
    """Move a log's content to `<name>.1` when it is over `max_bytes`, and empty it in place.

    The writer keeps its open file (it appends), so nothing has to be told; lines written in between may be lost.
    """
    try:
        if path.stat().st_size <= max_bytes:
            return False
    except FileNotFoundError:
        return False
    old = [path.with_name(f"{path.name}.{index}") for index in range(1, num_old + 1)]
    for newer, older in reversed(list(itertools.pairwise(old))):
        if newer.exists():
            os.replace(newer, older)
    if old:
        old[0].write_bytes(path.read_bytes())
    os.truncate(path, 0)
    return True


def last_line(log: Path) -> str:
    """The last line of a log that says something, at most 300 characters."""
    try:
        lines = log.read_bytes()[-8192:].decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip()[-300:] for line in reversed(lines) if line.strip()), "")


def stands_still(pid: int) -> bool:
    """This process of this host is stopped (SIGSTOP, a debugger). False when it runs, or when that is not known."""
    fields = _stat_fields(Path(f"/proc/{pid}/stat")) if pid > 0 else []
    return bool(fields) and fields[0] in (b"T", b"t")


def is_ending(pid: int) -> bool:
    """This process of this host exits, or was sent SIGKILL: it serves nothing more, though its connections may still be
    open. False when it goes on, or when that is not known."""
    if pid <= 0:
        return False
    fields = _stat_fields(Path(f"/proc/{pid}/stat"))
    if not fields:
        return False
    return fields[0] in (b"Z", b"X") or bool(int(fields[6]) & _PF_EXITING) or _has_pending(pid, signal.SIGKILL)


def _has_pending(pid: int, number: signal.Signals) -> bool:
    """This signal was sent to the process, or to its first thread, and has not been taken yet."""
    try:
        lines = Path(f"/proc/{pid}/status").read_bytes().splitlines()
    except OSError:
        return False
    pending = [int(line.split()[1], 16) for line in lines if line.startswith((b"SigPnd:", b"ShdPnd:"))]
    return any(each >> (number - 1) & 1 for each in pending)


def asleep_cpu_ticks(pid: int) -> int | None:
    """CPU ticks that this process has used, if all its threads sleep. None: one of them does not, or nobody knows."""
    if pid <= 0:
        return None
    whole = _stat_fields(Path(f"/proc/{pid}/stat"))
    try:
        threads = [_stat_fields(each / "stat") for each in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return None
    if not whole or not all(each and each[0] in (b"S", b"D") for each in threads):
        return None
    return int(whole[11]) + int(whole[12])


def _stat_fields(path: Path) -> list[bytes]:
    """From the state on, as proc(5) lists them; empty when it has ended."""
    try:
        return path.read_bytes().rpartition(b")")[2].split()
    except OSError:
        return []
