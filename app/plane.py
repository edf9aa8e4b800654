"""What the console needs of the plane: `control.client.PhaselineClient` has it, and so has the tests' fake."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Protocol, Unpack

from control.client import AttachChoices, AttachedInfo, Attachment, Survey
from control.types.alerts import Alert
from control.types.api import Principal, Session
from control.types.commands import Command, CommandRequest, Preview
from control.types.events import EventKind, FleetEvent
from control.types.fleet import Capability, FleetSnapshot
from control.types.latencies import Explanation, Heatmap
from control.types.requests import RequestFilters, RequestRecord
from control.types.roofline import Roofline
from control.types.routing import WhatIfRouting
from control.types.series import MetricInfo, SeriesResult
from control.types.workers import RoleInterval


class Plane(Protocol):
    """What the console needs of `control.client.PhaselineClient`."""

    def close(self) -> None: ...
    def login(self, one_time_code: str) -> Session: ...
    def whoami(self) -> Principal: ...
    def snapshot(self, fleet_id: str | None = None) -> FleetSnapshot: ...
    def preview(self, request: CommandRequest) -> Preview: ...
    def submit(self, request: CommandRequest) -> Command: ...
    def command(self, command_id: int) -> Command: ...
    def commands(
        self,
        limit: int = 50,
        before_id: int | None = None,
        *,
        since_unix_s: float | None = None,
        until_unix_s: float | None = None,
    ) -> list[Command]: ...
    def what_if_routing(
        self, policy: dict[str, float | int], *, window_s: float = 3600.0, fleet_id: str | None = None
    ) -> WhatIfRouting: ...
    def metrics(self) -> list[MetricInfo]: ...
    def export(
        self,
        metrics: Sequence[str],
        since_unix_s: float,
        until_unix_s: float | None = None,
        step_s: int | None = None,
        by: str = "fleet",
        *,
        format: str = "csv",
    ) -> bytes: ...
    def series(
        self,
        metric: str,
        since_unix_s: float,
        until_unix_s: float | None = None,
        step_s: int | None = None,
        by: str = "fleet",
        fleet_id: str | None = None,
    ) -> SeriesResult: ...
    def many_series(
        self,
        metrics: Sequence[str],
        since_unix_s: float,
        until_unix_s: float | None = None,
        step_s: int | None = None,
        by: str = "fleet",
        fleet_id: str | None = None,
    ) -> list[SeriesResult]: ...
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
    ) -> list[RequestRecord]: ...
    def heatmap(
        self, since_unix_s: float, until_unix_s: float | None = None, **filters: Unpack[RequestFilters]
    ) -> Heatmap: ...
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
    ) -> Explanation: ...
    def request(self, request_id: str) -> RequestRecord: ...
    def fleets(self) -> list[str]: ...
    def attached(self) -> list[AttachedInfo]: ...
    def attach_choices(self) -> AttachChoices: ...
    def survey(self, attachment: Attachment) -> Survey: ...
    def attach(self, attachment: Attachment) -> AttachedInfo: ...
    def allow(self, name: str, capability: Capability) -> AttachedInfo: ...
    def forbid(self, name: str, capability: Capability) -> AttachedInfo: ...
    def detach(self, name: str) -> None: ...
    def events(self) -> Iterator[dict[str, Any]]: ...
    def fleet_events(
        self,
        since_unix_s: float,
        until_unix_s: float | None = None,
        *,
        kinds: Collection[EventKind] = (),
        worker_id: str | None = None,
        limit: int = 1_000,
    ) -> list[FleetEvent]: ...
    def alerts(
        self, since_unix_s: float | None = None, *, limit: int = 100, fleet_id: str | None = None
    ) -> list[Alert]: ...
    def roofline(
        self, since_unix_s: float | None = None, until_unix_s: float | None = None, fleet_id: str | None = None
    ) -> Roofline: ...
    def roles(
        self, since_unix_s: float, until_unix_s: float | None = None, fleet_id: str | None = None
    ) -> list[RoleInterval]: ...
