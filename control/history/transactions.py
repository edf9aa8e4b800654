"""The one way into the database: a transaction to read in, or one to write in under the fence that the plane holds.

Decided here: that nothing is written under a fence that is not the newest, which moments of a write are write points
(`control.write_points`), and that a failure is one HistoryError. Not decided here: what belongs into one transaction.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from control.history import leases
from control.history.database import history_error, reading, writing
from control.history.postgresql import ANSWER_LIMIT_S
from control.write_points import Reach


class Transactions:
    """On one database. Any number of threads read, one writes."""

    def __init__(self, engine: Engine, reach: Reach) -> None:
        self.engine = engine
        self._reach = reach
        self._held: tuple[str, int] | None = None  # the fleet and fence under which everything is written

    def hold(self, fleet_id: str, fence: int) -> None:
        """From now on everything is written under this fence, or refused with StaleFence."""
        self._held = (fleet_id, fence)

    @contextlib.contextmanager
    def writing(self, name: str, limit_s: float = ANSWER_LIMIT_S, *, is_fenced: bool = True) -> Iterator[Connection]:
        """The one way to write: a transaction, whose moments are write points of that name.

        `limit_s`: for one statement. Raises StaleFence, and writes nothing, when the fence that we hold is not the
        newest. The lease's own statements look at the fence themselves.
        """
        self._reach(f"{name}:before")
        try:
            with writing(self.engine, limit_s) as connection:
                if is_fenced and self._held is not None:
                    leases.check_fence(connection, *self._held)
                yield connection
                self._reach(f"{name}:uncommitted")
        except SQLAlchemyError as error:
            raise history_error(error) from error
        self._reach(f"{name}:after")

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        try:
            with reading(self.engine) as connection:
                yield connection
        except SQLAlchemyError as error:
            raise history_error(error) from error
