"""What the plane remembers of its workers' steps beside the history: the last minute's work, and decode's pace.

Nothing is decided here: points are `control.roofline`'s, batches `control.headroom`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from control.headroom import BatchLimit, DecodePace
from control.history.store import History
from control.points import Ingested
from control.recorder import Recorder
from control.roofline import RecentWork, live_roofline, range_queries, range_roofline
from control.types.roofline import Roofline
from control.types.workers import Role
from engine.readings import MeterReading


class Workload:
    """One per fleet. Feed it each observation."""

    def __init__(self, fleet_id: str) -> None:
        self._fleet_id = fleet_id
        self._recent = RecentWork()
        self._pace = DecodePace()
        self._readings: Mapping[str, MeterReading] = {}

    def add(self, ingested: Ingested, readings: Iterable[MeterReading]) -> None:
        self._recent.add(ingested)
        self._pace.add(readings)

    def batches(self, readings: Mapping[str, MeterReading], tpot_s: float) -> dict[Role, BatchLimit]:
        """Per role that decodes: its batch, and the largest inside the bound."""
        self._readings = readings
        return self._pace.limits(readings, tpot_s)

    def roofline(self, now_unix_s: float) -> Roofline:
        """Over the last minute."""
        return live_roofline(self._fleet_id, self._recent, self._readings, now_unix_s)

    async def roofline_of(self, recorder: Recorder, history: History, since: float, until: float) -> Roofline:
        """Over a range of the history, bucket by bucket."""
        queries = range_queries(self._fleet_id, since, until)
        found = {key: await recorder.read(history.series, query) for key, query in queries.items()}
        return range_roofline(self._fleet_id, found, self._readings, since, until)
