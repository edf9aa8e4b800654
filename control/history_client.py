"""The half of `control.client` that looks back: series, requests, latencies, roles, events, alerts, rooflines.

Everything here is read, so all of it is asked again while another plane takes over. Not decided here: at which address,
and for how long (`control.plane_http`); what a question means (`control.api`, `control.history`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, TypeVar, Unpack

from control.plane_http import API, PlaneHttp
from control.types.alerts import Alert
from control.types.events import EventKind, FleetEvent
from control.types.latencies import Explanation, Heatmap
from control.types.requests import RequestFilters, RequestRecord
from control.types.roofline import Roofline
from control.types.series import MetricInfo, SeriesResult
from control.types.workers import RoleInterval

T = TypeVar("T")


class HistoryClient:
    """What was. `fleet_id`: whose, where a call does not say; None: the plane's own fleet."""

    def __init__(self, http: PlaneHttp, fleet_id: str | None) -> None:
        self._http = http
        self.fleet_id = fleet_id

    def _get(self, kind: type[T], path: str, /, *, fleet_id: str | None = None, **params: Any) -> T:
        return self._http.get(kind, path, fleet_id=self.fleet_id if fleet_id is None else fleet_id, **params)

    def metrics(self) -> list[MetricInfo]:
        return self._get(list[MetricInfo], f"{API}/metrics")

    def series(
        self,
        metric: str,
        since_unix_s: float,
        until_unix_s: float | None = None,
        step_s: int | None = None,
        by: str = "fleet",
        fleet_id: str | None = None,
        *,
        names: Sequence[str] = (),
    ) -> SeriesResult:
        """`names`: only these roles, workers or rules."""
        return self._get(
            SeriesResult,
            f"{API}/series",
            metric=metric,
            since_unix_s=since_unix_s,
            until_unix_s=until_unix_s,
            step_s=step_s,
            by=by,
            fleet_id=fleet_id,
            name=list(names) or None,
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
        """Several metrics over one range in one question, in the order asked."""
        return self._get(
            list[SeriesResult],
            f"{API}/series/many",
            metric=list(metrics),
            since_unix_s=since_unix_s,
            until_unix_s=until_unix_s,
            step_s=step_s,
            by=by,
            fleet_id=fleet_id,
        )

    def export(
        self,
        metrics: Sequence[str],
        since_unix_s: float,
        until_unix_s: float | None = None,
        step_s: int | None = None,
        by: str = "fleet",
        *,
        format: str = "csv",
    ) -> bytes:
        """Series as a file, `csv` or `parquet`: a row per metric, group and bucket."""
        asked: dict[str, Any] = {
            "metric": list(metrics),
            "since_unix_s": since_unix_s,
            "until_unix_s": until_unix_s,
            "step_s": step_s,
            "by": by,
            "format": format,
            "fleet_id": self.fleet_id,
        }
        query = {name: value for name, value in asked.items() if value is not None}
        return self._http.answer("GET", f"{API}/series/export", True, params=query).content

    def roofline(
        self, since_unix_s: float | None = None, until_unix_s: float | None = None, fleet_id: str | None = None
    ) -> Roofline:
        """Workers under their devices' rooflines: over the last minute, or over a range."""
        return self._get(
            Roofline, f"{API}/roofline", since_unix_s=since_unix_s, until_unix_s=until_unix_s, fleet_id=fleet_id
        )

    def requests(
        self,
        limit: int = 100,
        since_unix_s: float | None = None,
        order: str = "recent",
        *,
        until_unix_s: float | None = None,
        above_s: float | None = None,
        up_to_s: float | None = None,
        fleet_id: str | None = None,
        **filters: Unpack[RequestFilters],
    ) -> list[RequestRecord]:
        """Request records, metadata only. order: recent | slowest, by `metric`, which `above_s` and `up_to_s` bound."""
        return self._get(
            list[RequestRecord],
            f"{API}/requests",
            limit=limit,
            since_unix_s=since_unix_s,
            until_unix_s=until_unix_s,
            above_s=above_s,
            up_to_s=up_to_s,
            order=order,
            fleet_id=fleet_id,
            **filters,
        )

    def heatmap(
        self,
        since_unix_s: float,
        until_unix_s: float | None = None,
        *,
        fleet_id: str | None = None,
        **filters: Unpack[RequestFilters],
    ) -> Heatmap:
        """Requests by arrival and latency."""
        return self._get(
            Heatmap,
            f"{API}/latency-heatmap",
            since_unix_s=since_unix_s,
            until_unix_s=until_unix_s,
            fleet_id=fleet_id,
            **filters,
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
        fleet_id: str | None = None,
        **filters: Unpack[RequestFilters],
    ) -> Explanation:
        """What is different about the requests of [from, to) with a latency in (above, up to]; without these, about
        those that were not good, or the slowest."""
        return self._get(
            Explanation,
            f"{API}/latency-differences",
            since_unix_s=since_unix_s,
            until_unix_s=until_unix_s,
            from_unix_s=from_unix_s,
            to_unix_s=to_unix_s,
            above_s=above_s,
            up_to_s=up_to_s,
            fleet_id=fleet_id,
            **filters,
        )

    def request(self, request_id: str) -> RequestRecord:
        return self._get(RequestRecord, f"{API}/requests/{request_id}")

    def roles(
        self, since_unix_s: float, until_unix_s: float | None = None, fleet_id: str | None = None
    ) -> list[RoleInterval]:
        return self._get(
            list[RoleInterval], f"{API}/roles", since_unix_s=since_unix_s, until_unix_s=until_unix_s, fleet_id=fleet_id
        )

    def fleet_events(
        self,
        since_unix_s: float,
        until_unix_s: float | None = None,
        *,
        kinds: Collection[EventKind] = (),
        worker_id: str | None = None,
        limit: int = 1_000,
        fleet_id: str | None = None,
    ) -> list[FleetEvent]:
        """What happened to workers and to the requests that left them, newest first."""
        return self._get(
            list[FleetEvent],
            f"{API}/events",
            since_unix_s=since_unix_s,
            until_unix_s=until_unix_s,
            kind=list(kinds) or None,
            worker_id=worker_id,
            limit=limit,
            fleet_id=fleet_id,
        )

    def alerts(
        self, since_unix_s: float | None = None, *, limit: int = 100, fleet_id: str | None = None
    ) -> list[Alert]:
        """What pends and fires, pages first; with `since_unix_s` also what ended since then, newest first."""
        return self._get(list[Alert], f"{API}/alerts", since_unix_s=since_unix_s, limit=limit, fleet_id=fleet_id)
