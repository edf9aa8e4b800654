"""Alerts as the history keeps them: one row each, the newest of its states. A plane that starts reads the open ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pydantic import TypeAdapter
from sqlalchemy import Connection, delete, or_, select

from control.history import schema
from control.history.points import upsert
from control.types.alerts import Alert, AlertState

MAX_ALERTS: Final = 1_000
_alert = TypeAdapter(Alert)
_table = schema.alerts
#: A write that waited in a spool does not move an alert back.
_RANK: Final[dict[AlertState, int]] = {"pending": 0, "firing": 1, "resolved": 2}


def put_alerts(connection: Connection, fleet_id: str, alerts: Sequence[Alert], forgotten: Sequence[str]) -> None:
    """New states; and those that pended in vain are gone."""
    c = _table.c
    for alert in alerts:
        known = connection.execute(select(c.alert).where(c.fleet_id == fleet_id, c.alert_id == alert.alert_id)).scalar()
        if known is not None and _is_older(alert, _alert.validate_json(known)):
            continue
        values: dict[str, Any] = {
            "fleet_id": fleet_id,
            "alert_id": alert.alert_id,
            "state": alert.state,
            "since_unix_s": alert.since_unix_s,
            "resolved_unix_s": alert.resolved_unix_s,
            "is_untold": alert.state == "resolved" and "resolved" not in alert.told,
            "alert": _alert.dump_json(alert),
        }
        statement = upsert(connection, _table)
        names = ("state", "since_unix_s", "resolved_unix_s", "is_untold", "alert")
        statement = statement.on_conflict_do_update(
            index_elements=list(_table.primary_key.columns), set_={name: statement.excluded[name] for name in names}
        )
        connection.execute(statement, values)
    if forgotten:
        connection.execute(
            delete(_table).where(c.fleet_id == fleet_id, c.alert_id.in_(forgotten), c.state == "pending")
        )


def _is_older(alert: Alert, known: Alert) -> bool:
    return (_RANK[alert.state], len(alert.told)) < (_RANK[known.state], len(known.told))


def open_alerts(connection: Connection, fleet_id: str, ended_since_unix_s: float) -> list[Alert]:
    """What pends or fires, and what has ended since then and was not told."""
    c = _table.c
    is_untold = c.is_untold & (c.resolved_unix_s >= ended_since_unix_s)
    wanted = select(c.alert).where(c.fleet_id == fleet_id, or_(c.state != "resolved", is_untold))
    found = connection.execute(wanted.order_by(c.since_unix_s).limit(MAX_ALERTS)).scalars()
    return [_alert.validate_json(each) for each in found]


def find_ended(connection: Connection, fleet_id: str, since_unix_s: float, limit: int) -> list[Alert]:
    """Those that ended since then, the newest first."""
    c = _table.c
    wanted = select(c.alert).where(c.fleet_id == fleet_id, c.resolved_unix_s >= since_unix_s)
    newest = wanted.order_by(c.resolved_unix_s.desc()).limit(min(limit, MAX_ALERTS))
    return [_alert.validate_json(each) for each in connection.execute(newest).scalars()]


def prune_alerts(connection: Connection, keep_s: float, now_unix_s: float) -> None:
    """Those that ended before anything that is kept."""
    connection.execute(delete(_table).where(_table.c.resolved_unix_s < now_unix_s - keep_s))
