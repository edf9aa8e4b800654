"""Alerts as Overview shows them: what fires in a quiet row at the top, and the list of the last day below.

Decided here: that what only pends is in the list and not at the top, and how an alert is put in a line. What deserves
one, and its words, are the plane's.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import tzinfo

from app import cards, format
from app.source import Hub
from control.errors import ControlError
from control.types.alerts import Alert

DAY_S = 86_400.0
EVERY_S = 10.0  # what has ended is read so often
NUM_LISTED = 8
MOST_READ = 500
NAMES = {
    "slo_burn_fast": "Error budget, fast",
    "slo_burn_slow": "Error budget, slow",
    "worker_dead": "Worker dead",
    "pool_empty": "Pool empty",
    "history_away": "History away",
    "plane_takeover": "Plane took over",
}


def firing(hub: Hub, tz: tzinfo) -> str:
    """A row for each that fires; nothing when none does."""
    snapshot = hub.look().snapshot
    found = [each for each in snapshot.alerts if each.state == "firing"] if snapshot is not None else []
    if any(each.name == "slo_burn_fast" for each in found):  # it says all that the slow one says
        found = [each for each in found if each.name != "slo_burn_slow"]
    return "".join(
        f'<div style="margin-bottom:6px">{cards.banner(line(each, tz), _look(each), alert=True)}</div>'
        for each in found[:NUM_LISTED]
    )


def line(alert: Alert, tz: tzinfo) -> str:
    """ "Worker dead since 14:03:07: w1 (decode) is dead: .."."""
    return f"{NAMES.get(alert.name, alert.name)} since {format.clock(alert.since_unix_s, tz)}: {alert.text}"


def _look(alert: Alert) -> str:
    return "broken" if alert.severity == "page" else "attention"


def listed(hub: Hub, tz: tzinfo) -> str:
    """Open and ended alerts of the last day; nothing at all on a quiet day."""
    rows = alert_rows(of_last_day(hub), tz)
    if not rows:
        return ""
    head = ("Since", "Alert", "State", "Severity", "What", "Ended", "Webhook")
    return cards.legend([], "Alerts of the last 24 h") + cards.table(head, rows, "Alerts of the last 24 hours")


def of_last_day(hub: Hub) -> list[Alert]:
    """Open ones first, then those that ended."""
    snapshot = hub.look().snapshot
    return [] if snapshot is None else [*snapshot.alerts, *_ended(hub, snapshot.at_unix_s)]


def reaching(hub: Hub, since_unix_s: float) -> list[Alert]:
    """Those that can reach into a window: the last day's, or, if it began before, all that ended after its begin.

    May raise ControlError for a window that began before.
    """
    if hub.now() - since_unix_s <= DAY_S + EVERY_S:
        return of_last_day(hub)
    key = ("alerts since", since_unix_s // EVERY_S)
    return hub.cached(key, 60.0, lambda plane: plane.alerts(since_unix_s, limit=MOST_READ))


def _ended(hub: Hub, now_unix_s: float) -> list[Alert]:
    """None while they cannot be read: what is open is shown all the same."""
    since = now_unix_s - DAY_S
    try:
        found = hub.cached(("alerts", now_unix_s // EVERY_S), 2 * EVERY_S, lambda plane: plane.alerts(since))
    except ControlError:
        return []
    return [each for each in found if each.state == "resolved"]


def alert_rows(alerts: Sequence[Alert], tz: tzinfo) -> list[tuple[cards.Cell, ...]]:
    """Open ones first, then the newest that ended."""
    return [
        (
            cards.Cell(format.clock(each.since_unix_s, tz)),
            cards.Cell(NAMES.get(each.name, each.name)),
            cards.Cell(cards.state(each.state), html=True),
            cards.Cell(each.severity),
            cards.Cell(each.text),
            cards.Cell("–" if each.resolved_unix_s is None else format.clock(each.resolved_unix_s, tz)),
            cards.Cell(each.not_told or ("told" if each.told else "–")),
        )
        for each in alerts[:NUM_LISTED]
    ]
