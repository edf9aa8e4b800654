"""A PostgreSQL server of our own, that can be stopped, stood still and started again. For benchmarks and tests.

Debian's server, in a folder under the temporary directory, reached by socket only; ended by its pid.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg

START_LIMIT_S = 60.0


def server_bin() -> Path:
    """Folder of Debian's newest server. Raises FileNotFoundError, and says what is missing, when there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found:
        raise FileNotFoundError("PostgreSQL's server is missing: install Debian's package `postgresql`")
    return found[-1].parent


def _as_user() -> dict[str, Any]:
    """The server refuses to run as root: then it runs as the user that Debian's package made."""
    return {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}


@dataclass(slots=True)
class Cluster:
    """`folder` holds data, socket and log. `options`: server settings as name=value."""

    folder: Path
    options: Sequence[str] = ()
    _server: subprocess.Popen[bytes] | None = None
    _stopped: list[psutil.Process] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/postgres?host={self.folder}"

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(host=str(self.folder), user="postgres", dbname="postgres", autocommit=True)

    def clear(self) -> None:
        """An empty database."""
        with self.connect() as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")

    def make(self) -> None:
        if user := _as_user().get("user"):
            shutil.chown(self.folder, user, user)
        made = [server_bin() / "initdb", "-D", self.folder / "data", "-U", "postgres", "--auth=trust", "--no-sync"]
        subprocess.run([*made, "-E", "UTF8"], check=True, capture_output=True, cwd=self.folder, **_as_user())

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        options = [part for each in ("listen_addresses=", *self.options) for part in ("-c", each)]
        command = [server_bin() / "postgres", "-D", self.folder / "data", "-k", self.folder, *options]
        with open(self.folder / "log", "ab") as log:
            self._server = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, **_as_user())
        until = time.monotonic() + START_LIMIT_S
        while True:
            try:
                return self.connect().close()
            except psycopg.OperationalError:
                if self._server.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"PostgreSQL did not start:\n{(self.folder / 'log').read_text()}") from None
                time.sleep(0.05)

    def stop(self) -> None:
        """As `pg_ctl stop -m immediate` does: no checkpoint, no goodbye; the next start recovers from the log."""
        self.go_on()
        server = self._running()
        if server is not None:
            server.send_signal(signal.SIGQUIT)
            server.wait(30)
        if self._server is not None:
            self._server.wait(30)
            self._server = None

    def _running(self) -> psutil.Process | None:
        """The server, also when somebody else has started it again (`pg_ctl restart`)."""
        try:
            return psutil.Process(int((self.folder / "data" / "postmaster.pid").read_text().split()[0]))
        except (OSError, psutil.NoSuchProcess):
            return None

    def stand_still(self) -> None:
        """SIGSTOP to the server and all its backends: connections stay open and nothing is answered."""
        assert self._server is not None
        server = psutil.Process(self._server.pid)
        self._stopped = [server, *server.children()]
        for each in self._stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.suspend()

    def go_on(self) -> None:
        for each in self._stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.resume()
        self._stopped = []


@contextlib.contextmanager
def private_cluster(*options: str) -> Iterator[Cluster]:
    """A running cluster, which is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="phaseline-pg-"))
    cluster = Cluster(folder, options)
    try:
        cluster.make()
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
