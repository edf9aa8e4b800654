"""The life of an alert. Pure: what holds now comes in, with the time; what has changed comes out.

    (seen) -> pending --held for_s--> firing --not seen for clear_s--> resolved
                 └── not seen ──> forgotten: nobody was told

Decided here: when an alert begins, fires and ends, and its id, which a plane that takes over makes again from the same
three words. Not decided here: what is worth an alert (`conditions`, `burn`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from control.types.alerts import Alert, AlertName, AlertSeverity

Key = tuple[AlertName, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What holds now and deserves an alert when it lasts for `for_s`."""

    name: AlertName
    severity: AlertSeverity
    text: str
    for_s: float
    subject: str = ""

    @property
    def key(self) -> Key:
        return self.name, self.subject


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """`open` is what pends and fires now; `changed` those whose state is another, with what has ended;
    `forgotten` ids of those that pended in vain."""

    open: Mapping[Key, Alert]
    changed: tuple[Alert, ...] = ()
    forgotten: tuple[str, ...] = ()


def advance(
    before: Mapping[Key, Alert],
    conditions: Iterable[Condition],
    clear_s: Mapping[AlertName, float],
    *,
    fleet_id: str,
    simulated: bool,
    now_unix_s: float,
) -> Moved:
    """One look. `clear_s`: how long each kind stays after it was last seen."""
    after: dict[Key, Alert] = {}
    changed: list[Alert] = []
    forgotten: list[str] = []
    for condition in conditions:
        known = before.get(condition.key) or _begun(condition, fleet_id, simulated, now_unix_s)
        alert = replace(known, text=condition.text, severity=condition.severity, seen_unix_s=now_unix_s)
        if alert.state == "pending" and now_unix_s - alert.since_unix_s >= condition.for_s:
            alert = replace(alert, state="firing", fired_unix_s=now_unix_s)
        after[condition.key] = alert
        if condition.key not in before or alert.state != known.state:
            changed.append(alert)
    for key, alert in before.items():
        if key in after:
            continue
        if alert.state == "pending":
            forgotten.append(alert.alert_id)
        elif now_unix_s - alert.seen_unix_s >= clear_s.get(alert.name, 0.0):
            changed.append(replace(alert, state="resolved", resolved_unix_s=now_unix_s))
        else:
            after[key] = alert
    return Moved(open=after, changed=tuple(changed), forgotten=tuple(forgotten))


def _begun(condition: Condition, fleet_id: str, simulated: bool, now_unix_s: float) -> Alert:
    return Alert(
        alert_id=alert_id(fleet_id, condition.key, now_unix_s),
        fleet_id=fleet_id,
        name=condition.name,
        subject=condition.subject,
        severity=condition.severity,
        state="pending",
        text=condition.text,
        since_unix_s=now_unix_s,
        seen_unix_s=now_unix_s,
        simulated=simulated,
    )


def alert_id(fleet_id: str, key: Key, since_unix_s: float) -> str:
    name, subject = key
    return hashlib.sha256(f"{fleet_id}\n{name}\n{subject}\n{since_unix_s!r}".encode()).hexdigest()[:24]


def in_order(alerts: Iterable[Alert]) -> tuple[Alert, ...]:
    """Firing before pending, pages before tickets, the oldest first."""
    return tuple(
        sorted(alerts, key=lambda each: (each.state != "firing", each.severity != "page", each.since_unix_s, each.name))
    )
