"""The same history tests on SQLite and on a real PostgreSQL, started for the session and reached by socket only."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from control.history.store import History

START_LIMIT_S = 60.0


def postgresql_bin() -> Path:
    """Folder of Debian's newest PostgreSQL server. Fails, and says what is missing, when there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found:
        pytest.fail("PostgreSQL's server is missing: install Debian's package `postgresql`")
    return found[-1].parent


def _user() -> str | None:
    """The server refuses to run as root: then it runs as the user that Debian's package made."""
    return "postgres" if os.geteuid() == 0 else None


@contextlib.contextmanager
def private_cluster() -> Iterator[Path]:
    """A cluster of our own: its socket's folder. No TCP port; ended by its pid."""
    folder = Path(tempfile.mkdtemp(prefix="phaseline-pg-"))
    bin_dir, user = postgresql_bin(), _user()
    if user:
        shutil.chown(folder, user, user)
    how = {"user": user, "group": user, "extra_groups": []} if user else {}
    try:
        make = [bin_dir / "initdb", "-D", folder / "data", "-U", "postgres", "--auth=trust", "--no-sync", "-E", "UTF8"]
        subprocess.run(make, check=True, capture_output=True, cwd=folder, **how)  # type: ignore[call-overload]
        options = [
            "-c",
            "listen_addresses=",
            "-c",
            "fsync=off",
            "-c",
            "max_connections=20",
            "-c",
            "shared_buffers=16MB",
        ]
        with open(folder / "log", "wb") as log:
            server = subprocess.Popen(
                [bin_dir / "postgres", "-D", folder / "data", "-k", folder, *options],
                stdout=log,
                stderr=log,
                cwd=folder,
                **how,  # type: ignore[arg-type]
            )
        try:
            _wait_until_ready(folder, server)
            yield folder
        finally:
            server.send_signal(signal.SIGQUIT)  # at once: nothing in it is kept
            server.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_ready(folder: Path, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_LIMIT_S
    while True:
        try:
            psycopg.connect(host=str(folder), user="postgres", dbname="postgres").close()
            return
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > until:
                pytest.fail(f"PostgreSQL did not start:\n{(folder / 'log').read_text()}")
            time.sleep(0.05)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Path]:
    with private_cluster() as folder:
        yield folder


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.integration)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database of its own."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'history.db'}"
    folder = request.getfixturevalue("cluster")
    with psycopg.connect(host=str(folder), user="postgres", dbname="postgres", autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    return f"postgresql://postgres@/postgres?host={folder}"


@pytest.fixture
def opened() -> Iterator[Callable[[str], History]]:
    """Opens histories, and closes them when the test ends."""
    found: list[History] = []

    def open_history(url: str) -> History:
        found.append(History.open(url))
        return found[-1]

    yield open_history
    for each in found:
        each.close()


@pytest.fixture
def history(url: str, opened: Callable[[str], History]) -> History:
    return opened(url)
