"""The alerts of one fleet: looked at each tick, kept in the history, told to console, API and webhook.

Decided here: the order of things: a state is queued for the history before anybody is told of it, and marked as told
once its receiver has it. So a plane that starts or takes over goes on with the same alerts, under the same ids, and
tells what was not told; a receiver may see a message twice, under one id. Nothing here waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from control.alerts.burn import GoodCounts, burn_rates, burning
from control.alerts.conditions import CLEAR_S, PlaneFacts, conditions
from control.alerts.life import Key, advance, in_order
from control.alerts.webhook import Delivery, Webhook
from control.events import Events
from control.history.deferred import AlertWrite, encode
from control.history.store import History
from control.recorder import Recorder
from control.types.alerts import Alert
from control.types.fleet import FleetSnapshot
from control.types.requests import RequestRecord

#: What ended longer ago, and was not told, is news for nobody.
TOO_OLD_S: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The share of requests that are to be good, and from how many on a window says something."""

    share: float
    least_requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What the history knows when a plane starts."""

    alerts: Sequence[Alert] = ()
    counts: Sequence[tuple[int, int, int]] = ()  # `GoodCounts`


@dataclass(slots=True)
class AlertBook:
    """One per fleet and plane."""

    fleet_id: str
    objective: Objective
    history: History
    recorder: Recorder
    events: Events
    rates: dict[int, float | None] = field(default_factory=dict)  # burn rate by window
    _open: dict[Key, Alert] = field(default_factory=dict)
    _untold: dict[str, Alert] = field(default_factory=dict)  # ended, and its receiver does not know
    _counts: GoodCounts = field(default_factory=GoodCounts)
    _webhook: Webhook | None = None

    def start(
        self, kept: Kept, now_unix_s: float, webhook: Callable[[Callable[[Delivery, str], None]], Webhook | None]
    ) -> None:
        """Go on where the last plane stopped. What fires stays until it was not seen for its time from now on."""
        self._counts = GoodCounts(kept.counts)
        self._webhook = webhook(self._on_told)
        for alert in kept.alerts:
            if alert.state == "resolved":
                self._untold[alert.alert_id] = alert
            else:
                self._open[alert.name, alert.subject] = replace(alert, seen_unix_s=now_unix_s)
        for alert in sorted(kept.alerts, key=lambda each: each.since_unix_s):
            if now_unix_s - (alert.resolved_unix_s or now_unix_s) < TOO_OLD_S:
                self._tell(alert)

    @property
    def open(self) -> tuple[Alert, ...]:
        """Pending and firing."""
        return in_order(self._open.values())

    @property
    def webhook(self) -> Webhook | None:
        return self._webhook

    def on_record(self, record: RequestRecord, *, good: bool | None) -> None:
        """One request has ended. None: it does not count."""
        if good is not None:
            self._counts.add(record.arrival_unix_s, good=good)

    def look(self, snapshot: FleetSnapshot, plane: PlaneFacts, now_unix_s: float) -> None:
        """What holds now, and what that changes."""
        windows = self._counts.windows(now_unix_s)
        self.rates = burn_rates(windows, self.objective.share)
        found = burning(windows, self.objective.share, self.objective.least_requests)
        moved = advance(
            self._open,
            [*found, *conditions(snapshot, plane, now_unix_s)],
            CLEAR_S,
            fleet_id=self.fleet_id,
            simulated=snapshot.simulated,
            now_unix_s=now_unix_s,
        )
        self._open = dict(moved.open)
        if moved.changed or moved.forgotten:
            self._write(moved.changed, moved.forgotten)
        for alert in moved.changed:
            if alert.state == "resolved" and self._webhook is not None:
                self._untold[alert.alert_id] = alert
            self._announce(alert)
            self._tell(alert)

    async def close(self) -> None:
        if self._webhook is not None:
            await self._webhook.close()

    # --- telling ----------------------------------------------------------------------------------------------------

    def _announce(self, alert: Alert) -> None:
        self.events.publish(
            "alert",
            fleet_id=self.fleet_id,
            alert_id=alert.alert_id,
            name=alert.name,
            subject=alert.subject,
            severity=alert.severity,
            state=alert.state,
            text=alert.text,
        )

    def _tell(self, alert: Alert) -> None:
        """By webhook: what fires, and the end of it; each once."""
        if self._webhook is not None and alert.state != "pending" and alert.state not in alert.told:
            self._webhook.offer(alert)

    def _on_told(self, delivery: Delivery, problem: str) -> None:
        told = delivery.alert
        key = (told.name, told.subject)
        now = self._open.get(key)
        if now is None or now.alert_id != told.alert_id:
            now = self._untold.get(told.alert_id, told)
        marked = replace(now, told=now.told if problem else (*now.told, told.state), not_told=problem)
        if self._open.get(key) is now:
            self._open[key] = marked
        elif told.state == "resolved":
            self._untold.pop(told.alert_id, None)
        else:
            self._untold[told.alert_id] = marked
        self._write((marked,), ())

    def _write(self, alerts: tuple[Alert, ...], forgotten: tuple[str, ...]) -> None:
        write = AlertWrite(self.fleet_id, alerts, forgotten)
        arguments = (write.fleet_id, write.alerts, write.forgotten)
        self.recorder.later(self.history.put_alerts, *arguments, frame=partial(encode, write))
