"""A plane in memory: deterministic, driven by its clock. `connect` is what the console asks (`tests.app.fake_client`).

It decides nothing: scenes, courses and commands are just enough to see what the console makes of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from control.errors import CommandRefused, StaleVersion
from control.fleets.attached.types import Attachment
from control.types.alerts import Alert
from control.types.commands import (
    Action,
    Command,
    CommandRequest,
    CommandState,
    CommandStep,
    Desired,
    PlannedStep,
    Verb,
)
from control.types.events import EventKind, FleetEvent
from control.types.fleet import Capability, FleetSnapshot, Missing
from control.types.requests import RequestRecord
from control.types.workers import LossCause, Role
from tests.app.fake_client import FakeClient
from tests.app.fake_fleet import FakeFleet
from tests.app.fake_requests import record_of

STEP_S = 0.7  # how long each step of a command takes


class FakePlane(FakeFleet):
    """One fleet, with the commands that were given, and what happened."""

    def __init__(
        self,
        now: Callable[[], float],
        *,
        scene: str = "ok",
        num_workers: int = 4,
        prefill: int = 1,
        simulated: bool = False,
    ) -> None:
        super().__init__(now, scene=scene, num_workers=num_workers, prefill=prefill, simulated=simulated)
        self.commands_: list[Command] = []
        self.events_: list[FleetEvent] = []
        self.alerts_: list[Alert] = []
        self.num_requests = 120
        self.attached: list[str] = []  # names of other fleets
        self.told: dict[str, Attachment] = {}  # how they were attached
        self.allowed: dict[str, list[Capability]] = {}  # what may be done to them
        self.missing: tuple[Missing, ...] = ()  # what their engines do not say

    def connect(self, token: str) -> FakeClient:
        return FakeClient(self, token)

    def snapshot(self) -> FleetSnapshot:
        self.advance()
        going = (CommandState.ACCEPTED, CommandState.RUNNING)
        return replace(
            super().snapshot(),
            alerts=tuple(each for each in self.alerts_ if each.resolved_unix_s is None),
            active_command_ids=tuple(each.command_id for each in self.commands_ if each.state in going),
        )

    def record(self, index: int) -> RequestRecord:
        return record_of(index, self.now(), simulated=self.simulated)

    def die(self, worker_id: str, ago_s: float, away_s: float | None = 3.2) -> None:
        """A worker died; `away_s` None: it is away still."""
        at = self.now() - ago_s

        def tell(kind: EventKind, after_s: float, **more: Any) -> None:
            values = {"fleet_id": "local", "worker_id": worker_id, "kind": kind, "at_unix_s": at + after_s} | more
            self.events_.append(FleetEvent(**values))

        tell("died", 0.0, epoch=1, reason="killed by signal 9")
        tell(
            "failover",
            0.05,
            num_requests=14,
            to_workers={"w2": 8, "w3": 6},
            notice_s=0.04,
            stall_s=0.24,
            cause=LossCause.DIED,
        )
        if away_s is not None:
            tell("restarted", away_s, epoch=2, away_s=away_s, reason="killed by signal 9")

    def advance(self) -> None:
        """Move running commands on, as far as the clock has come."""
        for index, command in enumerate(self.commands_):
            if command.state not in (CommandState.ACCEPTED, CommandState.RUNNING):
                continue
            done = int((self.now() - command.created_unix_s) / STEP_S)
            planned = [step for step in command.steps if step.state != "done"]
            total = len(command.steps)
            steps = tuple(
                replace(step, state="done" if i < done else "running" if i == done else "planned")
                for i, step in enumerate(command.steps)
            )
            ended = done >= total or not planned
            self.commands_[index] = replace(
                command,
                steps=steps,
                state=CommandState.DONE if ended else CommandState.RUNNING,
                updated_unix_s=min(self.now(), command.created_unix_s + STEP_S * total),
                result="done: the pools are as desired" if ended else "",
                can_undo=ended and command.action.verb != Verb.UNDO,
            )

    def after(self, action: Action) -> Desired:
        roles, policy = dict(self.desired.roles), self.desired.policy
        weights, drained = dict(self.desired.weights), self.desired.drained
        if action.verb == Verb.RESIZE:
            sizes = [
                (Role.PREFILL, action.prefill or 0),
                (Role.DECODE, action.decode or 0),
                (Role.MIXED, action.mixed or 0),
            ]
            wanted = [role for role, size in sizes for _ in range(size)]
            if len(wanted) > len(roles):
                raise CommandRefused(f"the fleet has {len(roles)} workers", field="decode", value=action.decode)
            wanted += [Role.UNASSIGNED] * (len(roles) - len(wanted))
            roles = dict(zip(roles, wanted, strict=True))
        elif action.verb == Verb.FLIP:
            roles[str(action.worker_id)] = action.role or Role.MIXED
        elif action.verb == Verb.DRAIN:
            drained = drained | {str(action.worker_id)}
        elif action.verb == Verb.UNDRAIN:
            drained = drained - {str(action.worker_id)}
        elif action.verb == Verb.SET_ROUTING:
            policy = replace(policy, **(action.policy or {}))
            weights.update(action.weights or {})
        elif action.verb == Verb.UNDO:
            target = next(each for each in self.commands_ if each.command_id == action.command_id)
            before = target.desired_before
            assert before is not None
            return replace(before, version=self.desired.version + 1)
        version = self.desired.version + 1
        return Desired(version=version, roles=roles, drained=drained, weights=weights, policy=policy)

    def planned(self, after: Desired) -> tuple[PlannedStep, ...]:
        flips = [
            PlannedStep(
                verb="flip",
                worker_id=each,
                role=role,
                from_role=self.desired.roles[each],
                text=f"flip {each} {self.desired.roles[each]} → {role} (2 running sequences finish first)",
            )
            for each, role in after.roles.items()
            if role != self.desired.roles[each]
        ]
        routed = PlannedStep(
            verb="route", worker_id=None, role=None, from_role=None, text="push the routing table to 1 gateway"
        )
        return (*flips, routed)

    def submit_as(self, who: str, request: CommandRequest) -> Command:
        if request.base_version is not None and request.base_version != self.desired.version:
            raise StaleVersion(
                f"the desired state is at version {self.desired.version}, the form at {request.base_version}"
            )
        after, now = self.after(request.action), self.now()
        steps = tuple(
            CommandStep(at_unix_s=now + STEP_S * index, text=step.text, worker_id=step.worker_id, state="planned")
            for index, step in enumerate(self.planned(after))
        )
        command = Command(
            command_id=len(self.commands_) + 1,
            fleet_id="local",
            action=request.action,
            state=CommandState.ACCEPTED,
            who=who,
            why=request.why,
            idempotency_key=request.idempotency_key,
            base_version=self.desired.version,
            version_after=after.version,
            created_unix_s=now,
            updated_unix_s=now,
            steps=steps,
            desired_before=self.desired,
            desired_after=after,
            undo_of=request.action.command_id if request.action.verb == Verb.UNDO else None,
        )
        if command.undo_of is not None:
            self.commands_ = [
                replace(each, undone_by=command.command_id, can_undo=False)
                if each.command_id == command.undo_of
                else each
                for each in self.commands_
            ]
        self.commands_.append(command)
        self.desired = after
        self.past.append((now, after))
        return command
