"""What outsiders are told of one fleet: the totals behind `/metrics`. One call per tick, which waits for nothing.

Decided here: what is counted from where. Not decided here: how it is shown (`control.exposition`).
"""

from __future__ import annotations

from collections.abc import Callable

from control.exposition.families import Page
from control.exposition.plane_page import HistoryFacts, plane_page
from control.exposition.request_totals import RequestTotals
from control.exposition.work_totals import WorkTotals
from control.points import Ingested
from control.recorder import Recorder
from control.settings import Settings
from control.types import FleetSnapshot, RequestRecord


class Monitor:
    """Fed by the plane: each look at the fleet, each request that has ended, each snapshot."""

    def __init__(self, settings: Settings, recorder: Recorder, now: Callable[[], float]) -> None:
        self._work = WorkTotals()
        self._requests = RequestTotals(settings.effective_slo)
        self._recorder = recorder
        self._now = now
        self._max_workers = settings.metrics_max_workers
        self.snapshot: FleetSnapshot | None = None

    def on_ingested(self, ingested: Ingested) -> None:
        self._work.add(ingested)

    def on_record(self, record: RequestRecord) -> None:
        self._requests.add(record)

    def on_tick(self, snapshot: FleetSnapshot) -> None:
        self.snapshot = snapshot
        self._work.keep({each.worker_id for each in snapshot.workers})

    def page(self) -> Page | None:
        """The fleet as Prometheus text wants it; None before the first tick."""
        if self.snapshot is None:
            return None
        recorder = self._recorder
        history = HistoryFacts(
            is_up=not recorder.problem,
            num_waiting=recorder.num_waiting,
            num_dropped=recorder.num_dropped,
            num_spooled=recorder.num_spooled,
            spooled_bytes=recorder.spooled_bytes,
        )
        return plane_page(
            self.snapshot,
            self._work,
            self._requests,
            history,
            max_workers=self._max_workers,
            now_unix_s=self._now(),
        )
