"""Opening the history: SQLite or PostgreSQL by URL, brought to the newest schema. A failure is one HistoryError line.

SQLite runs in WAL with synchronous=FULL: an accepted command survives a power cut, not only a killed process, and at a
few commits a second the price (one fsync each) does not matter. Writers take the write lock at BEGIN, so that no
transaction fails half-way because another one wrote first. PostgreSQL keeps its own default, which is as durable; how
long it is waited for is decided in `control.history.postgresql`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import alembic.util.exc
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DataError, IntegrityError, OperationalError, SQLAlchemyError

from control.errors import DatabaseAway, HistoryError
from control.history.postgresql import ANSWER_LIMIT_S, postgresql_engine, set_limit

#: The plane is the only writer, so a lock that lasts is somebody's tool: refuse before a client gives up (5 s).
BUSY_TIMEOUT_S = 1.5
#: Of each of the few connections: what a tick writes to, many times over. The rest is in the operating system's cache.
PAGE_CACHE_KIB = 1024
#: Any constant: two processes that upgrade one PostgreSQL database at once take turns.
_UPGRADE_LOCK = 0x70686173


def one_line(error: Exception) -> str:
    """What the database said, in one line, without the statement."""
    cause = getattr(error, "orig", None) or error
    return " ".join(str(cause).split()) or type(error).__name__


def history_error(error: SQLAlchemyError) -> HistoryError:
    """What the database said, as our error. Values that it refuses it will refuse again."""
    found = HistoryError(one_line(error))
    found.retry_helps = not isinstance(error, IntegrityError | DataError)
    return found


def open_engine(url: str) -> Engine:
    """An engine on a database with the newest schema. Raises HistoryError; DatabaseAway when waiting may help."""
    parsed = _parse(url)
    shown = parsed.render_as_string(hide_password=True)
    try:
        engine = _sqlite(parsed) if parsed.get_backend_name() == "sqlite" else postgresql_engine(parsed)
    except (SQLAlchemyError, ImportError) as error:
        raise HistoryError(f"the history {shown} cannot be opened: {one_line(error)}", field="database_url") from error
    try:
        with writing(engine, limit_s=inf) as connection:
            _upgrade(connection)
    except (SQLAlchemyError, OSError) as error:
        engine.dispose()
        kind = DatabaseAway if _is_away(parsed, error) else HistoryError
        raise kind(f"the history {shown} cannot be opened: {one_line(error)}", field="database_url") from error
    except alembic.util.exc.CommandError as error:
        engine.dispose()
        raise HistoryError(
            f"the history {shown} has a schema that this version does not know (a newer version wrote it?): "
            f"{one_line(error)}",
            field="database_url",
        ) from error
    return engine


def _is_away(url: URL, error: Exception) -> bool:
    """It may come back: a server that does not answer, a file that somebody else has locked."""
    is_server = url.get_backend_name() == "postgresql"
    return isinstance(error, OperationalError) and (is_server or "locked" in str(error))


@contextlib.contextmanager
def writing(engine: Engine, limit_s: float = ANSWER_LIMIT_S) -> Iterator[Connection]:
    """One write transaction: all of it, or nothing. `limit_s`: for one statement of PostgreSQL."""
    with engine.execution_options(writes=True).begin() as connection:
        set_limit(connection, limit_s)
        yield connection


@contextlib.contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One snapshot of the database, however many statements look at it."""
    is_server = engine.dialect.name == "postgresql"
    options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True} if is_server else {}
    with engine.connect().execution_options(**options) as connection:
        yield connection


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, ValueError) as error:
        raise HistoryError(f"database_url is not a URL: {one_line(error)}", field="database_url") from error
    if backend == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise HistoryError("database_url names no file: sqlite:////path/to/history.db", field="database_url")
        return parsed
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    raise HistoryError(
        f"database_url: {backend} is not supported",
        field="database_url",
        bound="sqlite:///file or postgresql://host/db",
    )


def _sqlite(url: URL) -> Engine:
    assert url.database
    if not Path(url.database).parent.is_dir():
        folder = Path(url.database).parent
        raise HistoryError(f"the history {url.database} cannot be opened: no folder {folder}", field="database_url")
    # The connection that was used last is used next: its page cache is warm, and those of the others stay small.
    engine = create_engine(
        url, pool_use_lifo=True, connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False}
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: object) -> None:
        connection.isolation_level = None  # BEGIN is ours, below
        cache = f"cache_size=-{PAGE_CACHE_KIB}"
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "temp_store=MEMORY", cache):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def migration_config(connection: Connection) -> alembic.config.Config:
    """Alembic without a file: our migrations, on this connection."""
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _upgrade(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
    alembic.command.upgrade(migration_config(connection), "head")
