"""A plane on a fake fleet and a history in memory, with a clock that only tests move; and its API."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from control.adoption import adopt
from control.api.app import create_app
from control.api.context import ApiContext
from control.auth import Auth, open_auth, read_token
from control.plane import Plane
from control.settings import Settings
from control.types.api import Principal
from control.types.commands import Action, Command, CommandRequest, CommandState
from control.types.workers import Role
from tests.control.builders import NOW, FakeFleet, lease
from tests.control.fake_history import FakeHistory

ALICE = Principal(name="alice", role="operator")
BOB = Principal(name="bob", role="operator")


@dataclass(slots=True)
class Rig:
    """`history` may be any that has the methods of `control.history`."""

    run_dir: Path
    fleet: FakeFleet = field(default_factory=FakeFleet.of)
    history: Any = field(default_factory=FakeHistory)
    now: float = NOW
    plane: Plane = None  # type: ignore[assignment]
    auth: Auth = None  # type: ignore[assignment]

    async def start(self, **changes: Any) -> Rig:
        values = {"run_dir": self.run_dir, "num_workers": len(self.fleet.workers), "drain_limit_s": 60.0} | changes
        settings = Settings(**values)
        fence = max((each.fence for each in self.fleet.workers.values()), default=0) + 1
        self.plane = await adopt(self.fleet, self.history, settings, lease(fence), "test", lambda: self.now)
        self.auth = open_auth(self.run_dir, self.now)
        await self.ticks(2)
        return self

    async def ticks(self, number: int = 1) -> None:
        for _ in range(number):
            self.now += 0.1
            await self.plane.tick()
            await self.plane.settled()

    async def submit(self, action: Action, who: Principal = ALICE, **changes: Any) -> Command:
        return await self.plane.submit(CommandRequest(action=action, **changes), who)

    async def state(self, command: Command) -> CommandState:
        return (await self.plane.command(command.command_id)).state

    def roles(self) -> list[Role]:
        return [each.role for each in self.fleet.workers.values()]

    def app(self, **changes: Any) -> FastAPI:
        return create_app(
            ApiContext(
                planes={"test": self.plane},
                auth=self.auth,
                settings=self.plane.settings,
                version="test",
                started_unix_s=NOW,
                now=lambda: self.now,
                **changes,
            )
        )

    def token(self, role: str) -> str:
        """The operator's or service's own token, or one of a new viewer."""
        if role == "viewer":
            return self.auth.create_token("vera", "viewer", self.now)
        return read_token(self.run_dir, role)
