"""What the history knows of workers: their lives (epochs), and who held which role when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, case, or_, select

from control.history import schema
from control.history.points import upsert
from control.points import WorkerEpoch
from control.types.workers import Role, RoleInterval, WorkerState


def put_epochs(connection: Connection, fleet_id: str, epochs: Sequence[WorkerEpoch]) -> None:
    if not epochs:
        return
    statement = upsert(connection, schema.worker_epochs)
    statement = statement.on_conflict_do_update(
        index_elements=list(schema.worker_epochs.primary_key.columns),
        set_={"device": statement.excluded.device, "basis": statement.excluded.basis},
    )
    rows: list[dict[str, Any]] = [
        {
            "fleet_id": fleet_id,
            "worker_id": each.worker_id,
            "epoch": each.epoch,
            "model_id": each.model_id,
            "simulated": each.simulated,
            "hostname": each.hostname,
            "started_unix_s": each.started_unix_s,
            "basis": each.basis,
            "device": msgspec.json.encode(each.device),
        }
        for each in epochs
    ]
    connection.execute(statement, rows)


def put_intervals(connection: Connection, fleet_id: str, intervals: Sequence[RoleInterval]) -> None:
    """Open and closed intervals; a closing one keeps the reason with which it was opened."""
    if not intervals:
        return
    statement = upsert(connection, schema.role_intervals)
    new, old = statement.excluded, schema.role_intervals.c
    statement = statement.on_conflict_do_update(
        index_elements=list(schema.role_intervals.primary_key.columns),
        set_={
            "end_unix_s": new.end_unix_s,
            "role": new.role,
            "state": new.state,
            "reason": case((new.reason == "", old.reason), else_=new.reason),
        },
    )
    for each in intervals:  # one by one: the same interval may be opened and closed in one tick
        values = {
            "fleet_id": fleet_id,
            "worker_id": each.worker_id,
            "epoch": each.epoch,
            "start_unix_s": each.start_unix_s,
            "end_unix_s": each.end_unix_s,
            "role": each.role.value,
            "state": each.state.value,
            "reason": each.reason,
        }
        connection.execute(statement, values)


def find_intervals(
    connection: Connection, fleet_id: str, since_unix_s: float, until_unix_s: float
) -> list[RoleInterval]:
    """Intervals that overlap [since, until), by worker and start."""
    c = schema.role_intervals.c
    wanted = (
        select(schema.role_intervals)
        .where(c.fleet_id == fleet_id, c.start_unix_s < until_unix_s)
        .where(or_(c.end_unix_s.is_(None), c.end_unix_s > since_unix_s))
        .order_by(c.worker_id, c.start_unix_s)
    )
    return [
        RoleInterval(
            worker_id=row["worker_id"],
            epoch=row["epoch"],
            role=Role(row["role"]),
            state=WorkerState(row["state"]),
            start_unix_s=row["start_unix_s"],
            end_unix_s=row["end_unix_s"],
            reason=row["reason"],
        )
        for row in connection.execute(wanted).mappings()
    ]
