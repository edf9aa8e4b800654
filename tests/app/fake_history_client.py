"""What the console asks of the past, as `control.history_client.HistoryClient` has it, of a plane in memory."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from control.differences import differences
from control.errors import NotAllowed, NotFound, PlaneUnreachable
from control.heatmap import BIN_BUCKETS, bound_of, cells_of, column_step
from control.sampling import latency_of
from control.types.alerts import Alert
from control.types.events import EventKind, FleetEvent
from control.types.latencies import Explanation, Heatmap
from control.types.requests import RecordCounts, RequestFilters, RequestRecord, Slo
from control.types.roofline import Roofline
from control.types.series import MetricInfo, Series, SeriesPoint, SeriesResult
from control.types.workers import RoleInterval, WorkerState
from engine.histogram import bucket_of
from tests.app.fake_requests import passes
from tests.app.fake_series import catalogue, labels, metric_names, unit_of

if TYPE_CHECKING:
    from tests.app.fake_plane import FakePlane

PEOPLE = {"operator-token": "operator", "viewer-token": "viewer"}


class FakeHistoryClient:
    """One principal's questions."""

    def __init__(self, plane: FakePlane, token: str) -> None:
        self.plane, self.token = plane, token

    def _answer(self) -> FakePlane:
        if self.plane.scene == "silent":
            raise PlaneUnreachable("the plane at http://127.0.0.1:18600 does not answer: connection refused")
        if self.token not in PEOPLE:
            raise NotAllowed("unknown token")
        return self.plane

    def metrics(self) -> list[MetricInfo]:
        self._answer()
        return catalogue()

    def export(self, metrics: Sequence[str], since_unix_s: float, *more: Any, format: str = "csv") -> bytes:
        return f"{format} of {', '.join(metrics)}".encode()

    def series(
        self,
        metric: str,
        since_unix_s: float,
        until_unix_s: float | None = None,
        step_s: int | None = None,
        by: str = "fleet",
        fleet_id: str | None = None,
    ) -> SeriesResult:
        plane = self._answer()
        if metric not in metric_names():
            raise NotFound(f"no metric {metric}")
        until, step = until_unix_s or plane.now(), step_s or 10
        first, last = int(since_unix_s // step) * step, int(until // step) * step
        found = []
        for number, label in enumerate(labels(metric, by, plane.desired)):
            points = []
            for at in range(first, last, step):
                value = None if plane.scene in ("empty", "starting") else plane.value(metric, label, at + 31.0 * number)
                spread = 0.0 if value is None or step == 1 else 0.06 * value
                low, high = (None, None) if value is None else (value - spread, value + spread)
                points.append(SeriesPoint(t_unix_s=float(at), value=value, min=low, max=high, count=step))
            known = [each.value for each in points if each.value is not None]
            whole = max(known, default=None) if metric.endswith(("_p50_s", "_p99_s")) else None
            found.append(Series(label=label, points=tuple(points), whole=whole))
        return SeriesResult(
            fleet_id="local",
            metric=metric,
            unit=unit_of(metric),
            provenance="simulated" if plane.simulated else "derived",
            step_s=step,
            since_unix_s=since_unix_s,
            until_unix_s=until,
            by=by,
            series=tuple(found),
        )

    def many_series(
        self,
        metrics: Sequence[str],
        since_unix_s: float,
        until_unix_s: float | None = None,
        step_s: int | None = None,
        by: str = "fleet",
        fleet_id: str | None = None,
    ) -> list[SeriesResult]:
        return [self.series(each, since_unix_s, until_unix_s, step_s, by) for each in metrics]

    def roofline(
        self, since_unix_s: float | None = None, until_unix_s: float | None = None, fleet_id: str | None = None
    ) -> Roofline:
        plane = self._answer()
        return plane.roofline(since_unix_s, until_unix_s or plane.now())

    def requests(
        self,
        limit: int = 100,
        since_unix_s: float | None = None,
        order: str = "recent",
        *,
        until_unix_s: float | None = None,
        above_s: float | None = None,
        up_to_s: float | None = None,
        **filters: Unpack[RequestFilters],
    ) -> list[RequestRecord]:
        plane, metric = self._answer(), filters.get("metric", "e2e")
        if plane.scene in ("empty", "starting"):
            return []
        since, until = since_unix_s or 0.0, until_unix_s or plane.now() + 1.0
        low, high = -1.0 if above_s is None else above_s, math.inf if up_to_s is None else up_to_s
        found = [plane.record(index) for index in range(plane.num_requests)]
        found = [each for each in found if since <= each.arrival_unix_s < until and passes(each, filters)]
        if above_s is not None or up_to_s is not None:
            found = [each for each in found if low < (latency_of(each, metric) or -1.0) <= high]
        if order == "slowest":
            found.sort(key=lambda each: latency_of(each, metric) or 0.0, reverse=True)
        return found[:limit]

    def heatmap(
        self, since_unix_s: float, until_unix_s: float | None = None, **filters: Unpack[RequestFilters]
    ) -> Heatmap:
        plane, metric = self._answer(), filters.get("metric", "e2e")
        until = until_unix_s or plane.now()
        step_s = column_step(until - since_unix_s)
        start = int(since_unix_s // step_s) * step_s
        end = start + math.ceil((until - start) / step_s) * step_s
        found = self.requests(100_000, start, until_unix_s=end, **filters)
        counts: dict[tuple[int, int], float] = {}
        for each in found:
            value_s = latency_of(each, metric)
            if value_s is not None:
                key = (int((each.arrival_unix_s - start) // step_s), bucket_of(value_s) // BIN_BUCKETS)
                counts[key] = counts.get(key, 0.0) + 1.0
        bound_s, bound_text = bound_of(metric, Slo())
        cells = cells_of(counts, bound_s)
        is_estimated = any(filters.get(name) is not None for name in ("good", "worker_id", "moved", "failed", "batch"))
        return Heatmap(
            fleet_id="local",
            metric=metric,
            since_unix_s=start,
            until_unix_s=end,
            step_s=step_s,
            edges_s=cells.edges_s,
            columns=cells.columns,
            bins=cells.bins,
            counts=cells.counts,
            is_estimated=is_estimated,
            bound_s=bound_s,
            bound_text=bound_text,
            simulated=plane.simulated,
            requests=RecordCounts(num_requests=len(found), kept={"share": len(found)} if found else {}, dropped={}),
            note="every request is counted",
        )

    def explanation(
        self,
        since_unix_s: float,
        until_unix_s: float | None = None,
        *,
        from_unix_s: float | None = None,
        to_unix_s: float | None = None,
        above_s: float | None = None,
        up_to_s: float | None = None,
        **filters: Unpack[RequestFilters],
    ) -> Explanation:
        among = self.requests(100_000, since_unix_s, until_unix_s=until_unix_s, **filters)
        if above_s is None and from_unix_s is None:
            asked = [each for each in among if each.good is False]
        else:
            start = from_unix_s or since_unix_s
            cell = self.requests(*(100_000, start), until_unix_s=to_unix_s, above_s=above_s, up_to_s=up_to_s, **filters)
            ids = {each.request_id for each in cell}
            asked = [each for each in among if each.request_id in ids]
        mine = {each.request_id for each in asked}
        rest = [each for each in among if each.request_id not in mine]
        return Explanation(
            fleet_id="local",
            asked="not good: past a bound of the SLO, refused or failed" if above_s is None else "this cell",
            since_unix_s=since_unix_s,
            until_unix_s=until_unix_s or self.plane.now(),
            num_requests=len(asked),
            num_rest=len(rest),
            num_records=len(asked),
            num_rest_records=len(rest),
            differences=differences(asked, rest),
            note="by all records that are kept, each weighted by the share that is kept",
        )

    def alerts(
        self, since_unix_s: float | None = None, *, limit: int = 100, fleet_id: str | None = None
    ) -> list[Alert]:
        plane = self._answer()
        since = plane.now() if since_unix_s is None else since_unix_s
        return [each for each in plane.alerts_ if each.resolved_unix_s is None or each.resolved_unix_s >= since]

    def fleet_events(
        self,
        since_unix_s: float,
        until_unix_s: float | None = None,
        *,
        kinds: Collection[EventKind] = (),
        worker_id: str | None = None,
        limit: int = 1_000,
    ) -> list[FleetEvent]:
        plane = self._answer()
        until = plane.now() if until_unix_s is None else until_unix_s
        found = [each for each in plane.events_ if since_unix_s <= each.at_unix_s <= until]
        found = [each for each in found if worker_id in (None, each.worker_id) and (not kinds or each.kind in kinds)]
        return sorted(found, key=lambda each: each.at_unix_s, reverse=True)[:limit]

    def request(self, request_id: str) -> RequestRecord:
        for record in self.requests(limit=500):
            if record.request_id == request_id:
                return record
        raise NotFound(f"no request {request_id}")

    def roles(
        self, since_unix_s: float, until_unix_s: float | None = None, fleet_id: str | None = None
    ) -> list[RoleInterval]:
        plane = self._answer()
        found = []
        for worker_id in plane.desired.roles:
            for index, (start, desired) in enumerate(plane.past):
                end = plane.past[index + 1][0] if index + 1 < len(plane.past) else None
                found.append(
                    RoleInterval(
                        worker_id=worker_id,
                        epoch=1,
                        role=desired.roles[worker_id],
                        state=WorkerState.READY,
                        start_unix_s=start,
                        end_unix_s=end,
                        reason="first placement" if index == 0 else f"command {index}",
                    )
                )
        return found
