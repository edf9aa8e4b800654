"""A plane in memory with the signature of `control.client.PhaselineClient`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from control.errors import CommandRefused, NotAllowed
from control.fleets.attached.choices import choices
from control.fleets.attached.types import (
    AttachChoices,
    AttachedInfo,
    Attachment,
    EngineSurvey,
    Finding,
    Looks,
    Permission,
    Survey,
)
from control.types.api import Principal, Session
from control.types.commands import Command, CommandRequest, Preview
from control.types.fleet import Capability, FleetSnapshot
from control.types.routing import WhatIfRouting
from control.types.workers import Role
from tests.app.fake_history_client import PEOPLE, FakeHistoryClient


class FakeClient(FakeHistoryClient):
    """One principal's connection to a FakePlane."""

    def close(self) -> None:
        """Nothing is open."""

    def login(self, one_time_code: str) -> Session:
        if one_time_code != "good-code":
            raise NotAllowed("the code is unknown, used or too old")
        who = Principal(name="operator", role="operator")
        return Session(token="operator-token", principal=who, expires_unix_s=self.plane.now() + 3600)

    def whoami(self) -> Principal:
        self._answer()
        role = PEOPLE[self.token]
        return Principal(name=role, role=role)  # type: ignore[arg-type]

    def snapshot(self, fleet_id: str | None = None) -> FleetSnapshot:
        return self._answer().snapshot()

    def preview(self, request: CommandRequest) -> Preview:
        plane = self._answer()
        self._operator()
        after = plane.after(request.action)
        sizes = {role: desired.pool_size(Role(role)) for desired in (after,) for role in ("prefill", "decode", "mixed")}
        before = {role: plane.desired.pool_size(Role(role)) for role in sizes}
        lone = "decode" if before["decode"] >= 2 * max(1, sizes["decode"]) else ""
        return Preview(
            base_version=plane.desired.version,
            steps=plane.planned(after),
            pools_before=before,
            pools_after=sizes,
            warnings=("decode loses half of its workers",) if lone else (),
            needs_confirmation=lone,
            refused="" if sizes["decode"] or sizes["mixed"] else "decode has work: it cannot be resized to nothing",
            expected_s=2.4,
            effect="prefill queue halves; decode KV rises to 74%",
            effect_provenance="assumed",
        )

    def submit(self, request: CommandRequest) -> Command:
        self._operator()
        return self._answer().submit_as(PEOPLE[self.token], request)

    def _operator(self) -> None:
        if PEOPLE.get(self.token) != "operator":
            raise NotAllowed("a viewer may look, not act")

    def command(self, command_id: int) -> Command:
        return next(each for each in self.commands() if each.command_id == command_id)

    def fleets(self) -> list[str]:
        return ["local", *self.plane.attached]

    def attached(self) -> list[AttachedInfo]:
        return [self._attached(each) for each in self._answer().attached]

    def _attached(self, name: str) -> AttachedInfo:
        given = self.plane.allowed.get(name, [])
        return AttachedInfo(
            attachment=self.plane.told.get(name) or Attachment(name=name, kind="vllm", targets=("decode=h:1",)),
            who="ann",
            at_unix_s=1.0,
            can=(Capability.OBSERVE, Capability.RESIZE, Capability.FLIP),
            allowed=tuple(Permission(capability=each, who="ann", at_unix_s=2.0) for each in given),
            looks=Looks(num_workers=2, num_answering=1, newest_unix_s=self.plane.now()),
            missing=self.plane.missing,
        )

    def allow(self, name: str, capability: Capability) -> AttachedInfo:
        self._operator()
        self.plane.allowed.setdefault(name, []).append(capability)
        return self._attached(name)

    def forbid(self, name: str, capability: Capability) -> AttachedInfo:
        self._operator()
        self.plane.allowed[name].remove(capability)
        return self._attached(name)

    def attach_choices(self) -> AttachChoices:
        self._answer()
        return choices()

    def survey(self, attachment: Attachment) -> Survey:
        self._operator()
        off = Finding(quantity="exported_flops", state="off", series="vllm:flops", remedy="start it with --mfu")
        engine = EngineSurvey(worker_id="d0", url="http://h:1", role="decode", version="0.32.0", missing=(off,))
        return Survey(name=attachment.name, kind=attachment.kind, engines=(engine,), notes=("no device",))

    def attach(self, attachment: Attachment) -> AttachedInfo:
        self._operator()
        if not (attachment.targets or attachment.controller):
            raise CommandRefused("give targets, or a file of targets", field="targets", bound="one of the two")
        self.plane.attached.append(attachment.name)
        self.plane.told[attachment.name] = attachment
        return self._attached(attachment.name)

    def detach(self, name: str) -> None:
        self._operator()
        self.plane.attached.remove(name)

    def commands(
        self,
        limit: int = 50,
        before_id: int | None = None,
        *,
        since_unix_s: float | None = None,
        until_unix_s: float | None = None,
    ) -> list[Command]:
        plane = self._answer()
        plane.advance()
        newest = [each for each in reversed(plane.commands_) if before_id is None or each.command_id < before_id]
        newest = [each for each in newest if since_unix_s is None or each.created_unix_s >= since_unix_s]
        return [each for each in newest if until_unix_s is None or each.created_unix_s < until_unix_s][:limit]

    def what_if_routing(
        self, policy: dict[str, float | int], *, window_s: float = 3600.0, fleet_id: str | None = None
    ) -> WhatIfRouting:
        now = self._answer().now()
        return WhatIfRouting(
            before={"remote": 800, "short_local": 90},
            after={"remote": 600, "short_local": 90, "control_arm": 200},
            num_requests=890,
            num_changed=200,
            since_unix_s=now - window_s,
            until_unix_s=now,
        )

    def events(self) -> Iterator[dict[str, Any]]:
        self._answer()
        return iter(())
