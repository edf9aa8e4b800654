"""The one Python client of the control API; the console and the CLI use nothing else.

Synchronous httpx. Answers come back as `control.types` values, problem bodies as `control.errors`, and no answer at
all as PlaneUnreachable. Decided here: what is asked again while another plane takes over, at which address, and for how
long. Reading is; a command is, because its idempotency key makes it one command; logging in is not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from types import TracebackType
from typing import Any, TypeVar, Unpack
from urllib.parse import quote
from uuid import uuid4

import httpx
from pydantic import TypeAdapter, ValidationError

from control import errors
from control.errors import ControlError, FleetError, NotActive, NotFound, PlaneUnreachable, StaleFence
from control.fleets.attached.types import AttachChoices, AttachedInfo, Attachment, EngineSurvey, KindChoice, Survey
from control.types import (
    Action,
    Alert,
    Bottleneck,
    Capability,
    Command,
    CommandRequest,
    CommandState,
    Desired,
    EventKind,
    Explanation,
    FleetEvent,
    FleetSnapshot,
    Heatmap,
    MetricInfo,
    Preview,
    Principal,
    Problem,
    RequestFilters,
    RequestRecord,
    RoleInterval,
    Roofline,
    RoutingPolicy,
    SeriesResult,
    ServerInfo,
    Session,
    Verb,
    WhatIfRouting,
)

__all__ = [
    "ENDED",
    "AttachChoices",
    "AttachedInfo",
    "Attachment",
    "EngineSurvey",
    "KindChoice",
    "PhaselineClient",
    "Survey",
]

T = TypeVar("T")
API = "/api/v1"
POLL_S = 0.1
RETRY_S = 0.1
PATIENCE_S = 3.0
_adapters: dict[Any, TypeAdapter[Any]] = {}  # built once per type
ENDED = frozenset({CommandState.DONE, CommandState.FAILED, CommandState.SUPERSEDED})
ERRORS: Mapping[str, type[ControlError]] = {
    kind.__name__: kind
    for kind in (
        errors.SettingsError,
        errors.CommandRefused,
        errors.StaleVersion,
        errors.NotFound,
        errors.NotAllowed,
        errors.HistoryError,
        errors.DatabaseAway,
        errors.StaleFence,
        errors.NotActive,
        errors.FleetError,
    )
}


class PhaselineClient:
    """One connection pool to the active plane, wherever it listens. Thread-safe; close it or use it as a context.

    `urls`: the address of the plane, or those of all planes. `fleet_id`: whose answers are wanted where a call does not
    say; None: the plane's own fleet. `patience_s`: a takeover is waited out for so long.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        token: str = "",
        timeout_s: float = 5.0,
        *,
        fleet_id: str | None = None,
        patience_s: float = PATIENCE_S,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._urls = (urls,) if isinstance(urls, str) else tuple(urls)
        self.fleet_id = fleet_id
        self._turn = 0  # of the addresses: the one that answered last
        self._patience_s = patience_s
        self._http = httpx.Client(headers=headers, timeout=timeout_s, transport=transport, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> PhaselineClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # --- the server and who asks ----------------------------------------------------------------------------------

    def health(self) -> dict[str, Any]:
        """The process answers (no token needed): {"status": "ok", ...}."""
        return self._get(dict[str, Any], "/healthz")

    def ready(self) -> dict[str, Any]:
        """Readiness (no token needed). Raises FleetError (503) while the first tick is outstanding."""
        return self._get(dict[str, Any], "/readyz")

    def info(self) -> ServerInfo:
        return self._get(ServerInfo, f"{API}/info")

    def login(self, one_time_code: str) -> Session:
        """Exchange a one-time code for a session token (this client goes on with its own token)."""
        return self._post(Session, f"{API}/login", {"code": one_time_code})

    def create_login_code(self) -> str:
        """A one-time code (ten minutes) that logs the caller in elsewhere: the console's login URL carries it."""
        return self._post(dict[str, str], f"{API}/login/codes", {})["code"]

    def whoami(self) -> Principal:
        return self._get(Principal, f"{API}/whoami")

    # --- the fleet --------------------------------------------------------------------------------------------------

    def fleets(self) -> list[str]:
        return self._get(list[str], f"{API}/fleets")

    def attached(self) -> list[AttachedInfo]:
        """The fleets that somebody else runs and that are looked at here."""
        return self._get(list[AttachedInfo], f"{API}/attached")

    def attach_choices(self) -> AttachChoices:
        """What can be said to attach a fleet."""
        return self._get(AttachChoices, f"{API}/attached/choices")

    def survey(self, attachment: Attachment) -> Survey:
        """One look at every target, from where the plane is; changes nothing."""
        return self._post(Survey, f"{API}/attached/survey", asdict(attachment), is_repeatable=True)

    def attach(self, attachment: Attachment) -> AttachedInfo:
        """Look at this fleet from now on. The same words again change nothing."""
        return self._post(AttachedInfo, f"{API}/attached", asdict(attachment), is_repeatable=True)

    def allow(self, name: str, capability: Capability) -> AttachedInfo:
        """Let this be done to an attached fleet from now on."""
        return self._send(AttachedInfo, "PUT", _allowed_path(name, capability), True)

    def forbid(self, name: str, capability: Capability) -> AttachedInfo:
        """Do this to it no more."""
        return self._send(AttachedInfo, "DELETE", _allowed_path(name, capability), True)

    def detach(self, name: str) -> None:
        """Stop looking. History and engines stay as they are."""
        self._answer("DELETE", f"{API}/attached/{quote(name, safe='')}", False)

    def snapshot(self, fleet_id: str | None = None) -> FleetSnapshot:
        """The fleet as of the last tick. None: the plane's own."""
        return self._get(FleetSnapshot, f"{API}/fleets/{fleet_id or self.fleet_id or '-'}/snapshot")

    def bottleneck(self, fleet_id: str | None = None) -> Bottleneck:
        """What limits the fleet now, in one sentence with its evidence."""
        return self._get(Bottleneck, f"{API}/bottleneck", fleet_id=fleet_id)

    def desired(self, fleet_id: str | None = None) -> Desired:
        return self._get(Desired, f"{API}/fleets/{fleet_id or self.fleet_id or '-'}/desired")

    def routing(self, fleet_id: str | None = None) -> tuple[RoutingPolicy, dict[str, float]]:
        """The live routing policy and the per-worker weights (a worker that is not named has 1.0)."""
        desired = self.desired(fleet_id)
        return desired.policy, desired.weights

    def what_if_routing(
        self,
        policy: Mapping[str, float | int] | RoutingPolicy,
        *,
        window_s: float = 3600.0,
        fleet_id: str | None = None,
    ) -> WhatIfRouting:
        """How the last requests would have been routed; `policy` may hold only the keys to change."""
        changes = asdict(policy) if isinstance(policy, RoutingPolicy) else dict(policy)
        body = {"policy": changes, "window_s": window_s, "fleet_id": fleet_id or self.fleet_id}
        return self._post(WhatIfRouting, f"{API}/routing/what-if", body, is_repeatable=True)

    # --- commands ---------------------------------------------------------------------------------------------------

    def preview(self, request: CommandRequest) -> Preview:
        return self._post(Preview, f"{API}/commands/preview", _dump(self._for_fleet(request)), is_repeatable=True)

    def submit(self, request: CommandRequest) -> Command:
        """Record a command; it is carried out from the next tick on. StaleVersion, CommandRefused, NotAllowed.

        A command without an idempotency key gets one, so that it can be sent again when no answer came.
        """
        keyed = request if request.idempotency_key else replace(request, idempotency_key=uuid4().hex)
        return self._post(Command, f"{API}/commands", _dump(self._for_fleet(keyed)), is_repeatable=True)

    def _for_fleet(self, request: CommandRequest) -> CommandRequest:
        return request if request.fleet_id else replace(request, fleet_id=self.fleet_id)

    def undo(self, command_id: int, *, why: str = "", base_version: int | None = None) -> Command:
        action = Action(verb=Verb.UNDO, command_id=command_id)
        return self.submit(CommandRequest(action=action, why=why, base_version=base_version))

    def command(self, command_id: int) -> Command:
        return self._get(Command, f"{API}/commands/{command_id}")

    def commands(
        self,
        limit: int = 50,
        before_id: int | None = None,
        *,
        since_unix_s: float | None = None,
        until_unix_s: float | None = None,
    ) -> list[Command]:
        """Newest first, recorded in [since, until)."""
        window = {"since_unix_s": since_unix_s, "until_unix_s": until_unix_s}
        return self._get(list[Command], f"{API}/commands", limit=limit, before_id=before_id, **window)

    def wait(self, command_id: int, timeout_s: float = 120.0) -> Command:
        """Poll until the command has ended, or until `timeout_s` is over: look at `state` of what comes back."""
        until = time.monotonic() + timeout_s
        while True:
            command = self.command(command_id)
            if command.state in ENDED or time.monotonic() >= until:
                return command
            time.sleep(POLL_S)

    # --- history ----------------------------------------------------------------------------------------------------

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
        return self._answer("GET", f"{API}/series/export", True, params=query).content

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

    def events(self, timeout_s: float = 30.0) -> Iterator[dict[str, Any]]:
        """Server-sent events: {"event": "tick" | "command", ...}. Ends when the plane closes the stream."""
        try:
            mine = {} if self.fleet_id is None else {"fleet_id": self.fleet_id}
            with self._http.stream("GET", f"{self._url}{API}/events", params=mine, timeout=timeout_s) as response:
                if response.is_error:
                    response.read()
                    raise problem_error(response)
                for line in response.iter_lines():
                    if line.startswith("data: "):
                        yield json.loads(line[6:])
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    # --- transport --------------------------------------------------------------------------------------------------

    def _get(self, kind: type[T], path: str, /, **params: Any) -> T:
        params = {"fleet_id": self.fleet_id} | {k: v for k, v in params.items() if v is not None}
        query = {k: _query(v) for k, v in params.items() if v is not None}
        return self._send(kind, "GET", path, True, params=query)

    def _post(self, kind: type[T], path: str, body: Any, *, is_repeatable: bool = False) -> T:
        headers = {"Content-Type": "application/json"}
        return self._send(kind, "POST", path, is_repeatable, content=json.dumps(body), headers=headers)

    def _send(self, kind: type[T], method: str, path: str, is_repeatable: bool, **options: Any) -> T:
        response = self._answer(method, path, is_repeatable, **options)
        try:
            answer: T = _adapter(kind).validate_json(response.content)
            return answer
        except ValidationError as error:
            raise FleetError(f"the plane's answer to {path} is not understood: {error.errors()[0]['msg']}") from error

    def _answer(self, method: str, path: str, is_repeatable: bool, **options: Any) -> httpx.Response:
        """The active plane's answer. Raises the error that it stands for, or PlaneUnreachable."""
        until_s = time.monotonic() + self._patience_s
        while True:
            error: ControlError
            try:
                response = self._http.request(method, f"{self._url}{path}", **options)
                if not response.is_error:
                    return response
                error = problem_error(response)
                may_repeat = isinstance(error, StaleFence | NotActive)  # that plane has done nothing
            except httpx.TransportError as broken:
                error = self._unreachable(broken)
                may_repeat = is_repeatable or isinstance(broken, httpx.ConnectError)
            if not may_repeat or time.monotonic() > until_s:
                raise error
            self._turn += 1
            time.sleep(RETRY_S)

    @property
    def _url(self) -> str:
        return self._urls[self._turn % len(self._urls)].rstrip("/")

    def _unreachable(self, error: httpx.TransportError) -> PlaneUnreachable:
        return PlaneUnreachable(f"the plane at {self._url} does not answer: {error or type(error).__name__}")


def _allowed_path(name: str, capability: Capability) -> str:
    return f"{API}/attached/{quote(name, safe='')}/allowed/{capability.value}"


def problem_error(response: httpx.Response) -> ControlError:
    """The error that a problem body stands for: its class by `type`, else by status."""
    try:
        problem = _adapter(Problem).validate_json(response.content)
    except ValidationError:
        found = NotFound if response.status_code == 404 else FleetError
        return found(f"the plane answered {response.status_code} {response.reason_phrase}")
    kind = ERRORS.get(problem.type.rpartition(":")[2], ControlError)
    error = kind(problem.detail, field=problem.field, value=problem.value, bound=problem.bound)
    error.status = problem.status
    error.retry_helps = problem.retry_helps
    return error


def _adapter(kind: Any) -> TypeAdapter[Any]:
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def _dump(request: CommandRequest) -> Any:
    return _adapter(CommandRequest).dump_python(request, mode="json", exclude_none=True)


def _query(value: Any) -> str | list[str]:
    if isinstance(value, list):
        return [str(each) for each in value]
    return str(value).lower() if isinstance(value, bool) else str(value)
