"""The lease's row, and the fence that every write of a plane is checked against, in the write's own transaction.

Decided here: which rows are locked. A write shares the fence's row, so that a takeover waits for the writes that have
passed their check; a renewal touches only the lease's row, so that no long write delays it.
"""

from __future__ import annotations

from sqlalchemy import Connection, Row, func, literal_column, select, update

from control.errors import StaleFence
from control.history import journal, schema
from control.history.points import upsert
from control.lease import Holder, Lease, Standing, Verdict, judge

_c = schema.plane_leases.c


def clock(connection: Connection) -> float:
    """The database's own, Unix seconds; SQLite's is that of its host, in milliseconds."""
    if connection.dialect.name == "sqlite":
        return float(connection.execute(select((func.julianday("now") - 2440587.5) * 86400.0)).scalar_one())
    return float(connection.execute(select(literal_column("extract(epoch from clock_timestamp())"))).scalar_one())


def find(connection: Connection, fleet_id: str) -> Lease | None:
    row = connection.execute(select(schema.plane_leases).where(_c.fleet_id == fleet_id)).first()
    return None if row is None else _lease(row)


def take(
    connection: Connection, fleet_id: str, me: Holder, lease_s: float, standing: Standing
) -> tuple[Lease | None, Verdict]:
    """Take the lease under a new fence if the rule lets us, else None; and what the rule said."""
    _lock_fence(connection, fleet_id)
    row = connection.execute(select(schema.plane_leases).where(_c.fleet_id == fleet_id).with_for_update()).first()
    now = clock(connection)
    verdict = judge(None if row is None else _lease(row), me, standing, lease_s, now)
    if not verdict.may_take:
        return None, verdict
    fence = journal.next_fence(connection, fleet_id)
    values = {
        "holder_id": me.holder_id,
        "hostname": me.hostname,
        "machine": me.machine,
        "pid": me.pid,
        "started_unix_s": me.started_unix_s,
        "address": me.address,
        "fence": fence,
        "taken_unix_s": now,
        "expires_unix_s": now + lease_s,
    }
    statement = upsert(connection, schema.plane_leases)
    statement = statement.on_conflict_do_update(index_elements=["fleet_id"], set_=values)
    connection.execute(statement, {"fleet_id": fleet_id, **values})
    return Lease(holder=me, fence=fence, taken_unix_s=now, expires_unix_s=now + lease_s), verdict


def _lock_fence(connection: Connection, fleet_id: str) -> None:
    """Takeovers take turns, the first one too: there must be a row to lock."""
    statement = upsert(connection, schema.fences).on_conflict_do_nothing()
    connection.execute(statement, {"fleet_id": fleet_id, "fence": 0})
    connection.execute(select(schema.fences.c.fence).where(schema.fences.c.fleet_id == fleet_id).with_for_update())


def renew(connection: Connection, fleet_id: str, fence: int, lease_s: float) -> None:
    """For `lease_s` from now, also when it had expired and nobody took it. Raises StaleFence when somebody has."""
    mine = (_c.fleet_id == fleet_id, _c.fence == fence)
    expires = clock(connection) + lease_s
    changed = connection.execute(update(schema.plane_leases).where(*mine).values(expires_unix_s=expires))
    if changed.rowcount == 0:
        raise _stale(connection, fleet_id, fence)


def release(connection: Connection, fleet_id: str, fence: int) -> None:
    """Whoever stands by takes over at once. Nothing happens when another one has it already."""
    mine = (_c.fleet_id == fleet_id, _c.fence == fence)
    connection.execute(update(schema.plane_leases).where(*mine).values(expires_unix_s=_c.taken_unix_s))


def check_fence(connection: Connection, fleet_id: str, fence: int) -> None:
    """Raises StaleFence when another plane has taken over; none can before this transaction has ended."""
    wanted = select(schema.fences.c.fence).where(schema.fences.c.fleet_id == fleet_id).with_for_update(read=True)
    if connection.execute(wanted).scalar() != fence:
        raise _stale(connection, fleet_id, fence)


def _stale(connection: Connection, fleet_id: str, fence: int) -> StaleFence:
    lease = find(connection, fleet_id)
    by = f"{lease.holder.words} has taken over under fence {lease.fence}" if lease else "nobody has the lease"
    return StaleFence(f"fence {fence} of fleet {fleet_id} is stale: {by}", field="fence", value=fence)


def _lease(row: Row[tuple[object, ...]]) -> Lease:
    return Lease(
        holder=Holder(
            holder_id=row.holder_id,
            hostname=row.hostname,
            machine=row.machine,
            pid=row.pid,
            started_unix_s=row.started_unix_s,
            address=row.address,
        ),
        fence=row.fence,
        taken_unix_s=row.taken_unix_s,
        expires_unix_s=row.expires_unix_s,
    )
