"""What outsiders are told of one fleet: totals for `/metrics`, and alerts. Called each tick, and waits for nothing.

Decided here: what is counted from where. Not decided here: how it is shown (`control.exposition`), what deserves an
alert and who hears of it (`control.alerts`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from control.alerts.book import TOO_OLD_S, AlertBook, Kept, Objective
from control.alerts.burn import LONGEST_S, STEP_S
from control.alerts.conditions import PlaneFacts
from control.alerts.webhook import Delivery, Webhook, key_of
from control.errors import SettingsError
from control.events import Events
from control.exposition.families import Page
from control.exposition.plane_page import AlertFacts, HistoryFacts, plane_page
from control.exposition.request_totals import RequestTotals
from control.exposition.work_totals import WorkTotals
from control.history.store import History
from control.lease import Lease
from control.points import Ingested
from control.recorder import Recorder
from control.settings import Settings, webhook_secret
from control.traffic_stats import is_good
from control.types.alerts import Alert
from control.types.fleet import FleetSnapshot
from control.types.requests import RequestRecord


class Monitor:
    """Fed by the plane: each look at the fleet, each request that has ended, each snapshot."""

    def __init__(self, settings: Settings, recorder: Recorder, book: AlertBook, plane: PlaneFacts) -> None:
        self.book: Final = book
        self.snapshot: FleetSnapshot | None = None
        self._work = WorkTotals()
        self._slo = settings.effective_slo
        self._requests = RequestTotals(self._slo)
        self._recorder = recorder
        self._plane = plane
        self._max_workers = settings.metrics_max_workers

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """Pending and firing."""
        return self.book.open

    def on_ingested(self, ingested: Ingested) -> None:
        self._work.add(ingested)

    def on_record(self, record: RequestRecord) -> None:
        self._requests.add(record)
        self.book.on_record(record, good=is_good(record, self._slo))

    def on_tick(self, snapshot: FleetSnapshot, now_unix_s: float) -> None:
        self.snapshot = snapshot
        self._work.keep({each.worker_id for each in snapshot.workers})
        problem, num_waiting = self._recorder.problem, self._recorder.num_waiting + self._recorder.num_spooled
        plane = replace(self._plane, history_problem=problem, num_writes_waiting=num_waiting)
        self.book.look(snapshot, plane, now_unix_s)

    def page(self, now_unix_s: float) -> Page | None:
        """The fleet as Prometheus text wants it; None before the first tick."""
        if self.snapshot is None:
            return None
        recorder, webhook = self._recorder, self.book.webhook
        history = HistoryFacts(
            is_up=not recorder.problem,
            num_waiting=recorder.num_waiting,
            num_dropped=recorder.num_dropped,
            num_spooled=recorder.num_spooled,
            spooled_bytes=recorder.spooled_bytes,
        )
        alerts = AlertFacts(
            open=self.alerts,
            objective=self.book.objective.share,
            burn_rates=self.book.rates,
            deliveries=webhook.outcomes if webhook else None,
            num_waiting=webhook.num_waiting if webhook else 0,
        )
        return plane_page(
            self.snapshot,
            self._work,
            self._requests,
            history,
            alerts,
            max_workers=self._max_workers,
            now_unix_s=now_unix_s,
        )

    async def close(self) -> None:
        await self.book.close()


async def open_monitor(
    fleet_id: str,
    history: History,
    settings: Settings,
    recorder: Recorder,
    events: Events,
    lease: Lease,
    followed: str,
    now_unix_s: float,
) -> Monitor:
    """A monitor that goes on where the last plane's stopped. Raises HistoryError, SettingsError."""
    book = AlertBook(
        fleet_id=fleet_id,
        objective=Objective(share=settings.slo_objective, least_requests=settings.slo_least_requests),
        history=history,
        recorder=recorder,
        events=events,
    )
    kept = Kept(
        alerts=await recorder.read(history.open_alerts, fleet_id, now_unix_s - TOO_OLD_S),
        counts=await recorder.read(history.good_counts, fleet_id, now_unix_s - LONGEST_S, now_unix_s, STEP_S),
    )
    book.start(kept, now_unix_s, make_webhook(settings))
    plane = PlaneFacts(followed=followed, fence=lease.fence, since_unix_s=now_unix_s)
    return Monitor(settings, recorder, book, plane)


def make_webhook(settings: Settings) -> Callable[[Callable[[Delivery, str], None]], Webhook | None]:
    """Makes the receiver's end, when there is a receiver. Raises SettingsError."""
    if not settings.alert_webhook_url:
        return lambda _on_end: None
    try:
        key = key_of(webhook_secret(settings))
    except ValueError as error:
        raise SettingsError(f"setting alert_webhook_secret: not base64 after whsec_: {error}") from error
    return lambda on_end: Webhook(settings.alert_webhook_url, key, on_end)
