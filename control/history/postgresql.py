"""PostgreSQL, with an end to every wait: for a connection, an answer, a lock that a stopped process holds.

Decided here: how long. A server that refuses says so at once; one that hangs (stopped, partitioned, an overloaded
disk) says nothing, so the client itself stops waiting, and closes the connection, as nobody knows what becomes of it.
"""

from __future__ import annotations

from collections.abc import Generator
from time import monotonic
from typing import Any, Final, TypeVar

import psycopg
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL

T = TypeVar("T")
#: Of one statement that somebody waits for: a chart, a command.
ANSWER_LIMIT_S: Final = 4.0
#: Of one statement that nobody waits for: a tick, the deleting of what is old. A slow database gets it done.
WRITE_LIMIT_S: Final = 30.0
CONNECT_LIMIT_S: Final = 4
#: A plane that stands still inside a transaction keeps others from taking over only for so long; the server ends it.
IDLE_IN_TRANSACTION_S: Final = 5.0
#: What was sent and is not acknowledged for so long ends the connection: the network is gone.
DEAD_PEER_S: Final = 5.0
_SERVER: Final = {
    "statement_timeout": WRITE_LIMIT_S,  # nor does the server go on with what nobody waits for
    "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION_S,
}


class BoundedConnection(psycopg.Connection[Any]):
    """A connection each of whose statements is answered within `limit_s`, or is an OperationalError and closed."""

    limit_s: float = ANSWER_LIMIT_S

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **kwargs: Any) -> T:
        return super().wait(self._bounded(gen, self.limit_s), *args, **kwargs)

    def _bounded(self, gen: Generator[Any, Any, T], limit_s: float) -> Generator[Any, Any, T]:
        """`gen`, which is resumed at least ten times a second, until it ends or the time does."""
        until_s = monotonic() + limit_s
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and monotonic() > until_s:
                    self.pgconn.finish()
                    raise psycopg.OperationalError(f"PostgreSQL gave no answer for {limit_s:g} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            answer: T = end.value
            return answer


def postgresql_engine(url: URL) -> Engine:
    """An engine on BoundedConnections. What the URL itself says comes first."""
    mine: dict[str, Any] = {
        "connect_timeout": CONNECT_LIMIT_S,
        "tcp_user_timeout": round(DEAD_PEER_S * 1000),
        "options": " ".join(f"-c {name}={round(value * 1000)}" for name, value in _SERVER.items()),
    }
    arguments = {name: value for name, value in mine.items() if name not in url.query}
    engine = create_engine(url, pool_pre_ping=True, pool_timeout=ANSWER_LIMIT_S, connect_args=arguments)

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: Any, _record: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return BoundedConnection.connect(*positional, **named)

    @event.listens_for(engine, "checkin")
    def forget_limit(connection: Any, _record: Any) -> None:
        if connection is not None:
            connection.limit_s = ANSWER_LIMIT_S

    return engine


def set_limit(connection: Connection, limit_s: float) -> None:
    """Until this connection goes back to its pool."""
    driver: Any = connection.connection.dbapi_connection
    if isinstance(driver, BoundedConnection):
        driver.limit_s = limit_s


def lift_limits(connection: Connection) -> None:
    """The server's own limits, until this transaction ends."""
    if connection.dialect.name == "postgresql":
        for name in _SERVER:
            connection.execute(text(f"SET LOCAL {name} = 0"))
