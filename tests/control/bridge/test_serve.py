"""What may be served: only a fleet that an operator has allowed us to route, and only for as long."""

from __future__ import annotations

import asyncio

import pytest

from control.bridge.bridge import speech_of
from control.bridge.serve import allowed_of, while_allowed
from control.errors import CommandRefused, NotActive, NotAllowed, NotFound, PlaneUnreachable
from control.fleets.attached.types import AttachedInfo, Attachment, Permission
from control.types.fleet import Capability


def info(*capabilities: Capability, kind: str = "vllm") -> AttachedInfo:
    told = Attachment(name="prod", kind=kind, targets=("mixed=h:1",))
    given = tuple(Permission(capability=each, who="ann", at_unix_s=1.0) for each in capabilities)
    return AttachedInfo(attachment=told, who="ann", at_unix_s=1.0, allowed=given)


class Plane:
    def __init__(self, *infos: AttachedInfo) -> None:
        self.infos = list(infos)

    def attached(self) -> list[AttachedInfo]:
        return self.infos


def test_a_fleet_that_was_not_allowed_is_not_served_and_it_says_how_to_allow_it():
    with pytest.raises(NotAllowed, match="phaseline allow prod route"):
        allowed_of(Plane(info(Capability.FLIP)), "prod")
    with pytest.raises(NotFound, match="no attached fleet is named other"):
        allowed_of(Plane(info(Capability.ROUTE)), "other")
    assert allowed_of(Plane(info(Capability.ROUTE)), "prod").attachment.name == "prod"


def test_a_kind_that_is_only_looked_at_is_named():
    with pytest.raises(CommandRefused, match="kind dynamo"):
        speech_of("dynamo")


@pytest.mark.parametrize("end", [NotAllowed("taken back"), NotFound("detached")])
async def test_a_permission_that_is_taken_back_ends_it_and_a_plane_that_is_away_does_not(end: Exception):
    away, begins = PlaneUnreachable("away"), NotActive("the attached fleets are not loaded yet")
    answers: list[Exception | None] = [None, away, begins, None, end]
    stopped: list[bool] = []

    def look() -> AttachedInfo:
        answer = answers.pop(0)
        if answer is not None:
            raise answer
        return info(Capability.ROUTE)

    async with asyncio.timeout(10):
        await while_allowed(look, lambda: stopped.append(True), every_s=0.0)
    assert stopped == [True]
    assert answers == []
