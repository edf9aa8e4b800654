"""The one Python client of the control API; the console and the CLI use nothing else.

Synchronous httpx. Answers come back as `control.types` values, problem bodies as `control.errors`, and no answer at
all as PlaneUnreachable. What looks back is in `control.history_client`, the rest is here. Decided here: what may be
asked again while another plane takes over. Reading may; a command may, because its idempotency key makes it one
command; logging in may not. At which address, and for how long, is decided in `control.plane_http`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from types import TracebackType
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx

from control.fleets.attached.types import (
    AttachChoices,
    AttachedInfo,
    Attachment,
    ControllerChoice,
    EngineSurvey,
    KindChoice,
    Survey,
)
from control.history_client import HistoryClient
from control.plane_http import API, PlaneHttp, adapter
from control.types.api import Principal, ServerInfo, Session
from control.types.bottleneck import Bottleneck
from control.types.commands import Action, Command, CommandRequest, CommandState, Desired, Preview, Verb
from control.types.fleet import Capability, FleetSnapshot
from control.types.routing import RoutingPolicy, WhatIfRouting

__all__ = [
    "ENDED",
    "AttachChoices",
    "AttachedInfo",
    "Attachment",
    "ControllerChoice",
    "EngineSurvey",
    "KindChoice",
    "PhaselineClient",
    "Survey",
]

POLL_S = 0.1
PATIENCE_S = 3.0
ENDED = frozenset({CommandState.DONE, CommandState.FAILED, CommandState.SUPERSEDED})


class PhaselineClient(HistoryClient):
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
        addresses = (urls,) if isinstance(urls, str) else urls
        super().__init__(PlaneHttp(addresses, token, timeout_s, patience_s, transport), fleet_id)

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
        return self._http.post(Session, f"{API}/login", {"code": one_time_code})

    def create_login_code(self) -> str:
        """A one-time code (ten minutes) that logs the caller in elsewhere: the console's login URL carries it."""
        return self._http.post(dict[str, str], f"{API}/login/codes", {})["code"]

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
        return self._http.post(Survey, f"{API}/attached/survey", asdict(attachment), is_repeatable=True)

    def attach(self, attachment: Attachment) -> AttachedInfo:
        """Look at this fleet from now on. The same words again change nothing."""
        return self._http.post(AttachedInfo, f"{API}/attached", asdict(attachment), is_repeatable=True)

    def allow(self, name: str, capability: Capability) -> AttachedInfo:
        """Let this be done to an attached fleet from now on."""
        return self._http.send(AttachedInfo, "PUT", _allowed_path(name, capability), True)

    def forbid(self, name: str, capability: Capability) -> AttachedInfo:
        """Do this to it no more."""
        return self._http.send(AttachedInfo, "DELETE", _allowed_path(name, capability), True)

    def detach(self, name: str) -> None:
        """Stop looking. History and engines stay as they are."""
        self._http.answer("DELETE", f"{API}/attached/{quote(name, safe='')}", False)

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
        return self._http.post(WhatIfRouting, f"{API}/routing/what-if", body, is_repeatable=True)

    def events(self, timeout_s: float = 30.0) -> Iterator[dict[str, Any]]:
        """Server-sent events: {"event": "tick" | "command", ...}. Ends when the plane closes the stream."""
        mine = {} if self.fleet_id is None else {"fleet_id": self.fleet_id}
        return self._http.events(f"{API}/events", mine, timeout_s)

    # --- commands ---------------------------------------------------------------------------------------------------

    def preview(self, request: CommandRequest) -> Preview:
        return self._http.post(Preview, f"{API}/commands/preview", _dump(self._for_fleet(request)), is_repeatable=True)

    def submit(self, request: CommandRequest) -> Command:
        """Record a command; it is carried out from the next tick on. StaleVersion, CommandRefused, NotAllowed.

        A command without an idempotency key gets one, so that it can be sent again when no answer came.
        """
        keyed = request if request.idempotency_key else replace(request, idempotency_key=uuid4().hex)
        return self._http.post(Command, f"{API}/commands", _dump(self._for_fleet(keyed)), is_repeatable=True)

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
        return self._get(
            list[Command],
            f"{API}/commands",
            limit=limit,
            before_id=before_id,
            since_unix_s=since_unix_s,
            until_unix_s=until_unix_s,
        )

    def wait(self, command_id: int, timeout_s: float = 120.0) -> Command:
        """Poll until the command has ended, or until `timeout_s` is over: look at `state` of what comes back."""
        until = time.monotonic() + timeout_s
        while True:
            command = self.command(command_id)
            if command.state in ENDED or time.monotonic() >= until:
                return command
            time.sleep(POLL_S)


def _allowed_path(name: str, capability: Capability) -> str:
    return f"{API}/attached/{quote(name, safe='')}/allowed/{capability.value}"


def _dump(request: CommandRequest) -> Any:
    return adapter(CommandRequest).dump_python(request, mode="json", exclude_none=True)
