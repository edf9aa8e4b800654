"""A plane on a real database and a simulated fleet under traffic, while the database is in trouble.

Time of the fleet moves only here, one second a tick; the database's troubles are real, so a tick leaves it a moment.
What the history says afterwards is compared with the workers' own counters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import inf
from pathlib import Path

import pytest

from control.adoption import adopt
from control.errors import HistoryError
from control.fleets.sim import SimFleet, sim_config
from control.fleets.sim_traffic import SimTraffic
from control.history.store import History, RequestQuery, SeriesQuery
from control.lease import Holder, Standing
from control.plane import Plane
from control.settings import Settings
from control.types.api import Principal
from control.types.commands import Action, Command, CommandRequest, CommandState, Preview, Verb
from control.types.requests import RequestRecord
from control.types.routing import RoutingPolicy
from control.types.workers import Role

ALICE = Principal(name="alice", role="operator")
START_S = 1_800_000_000.0
NUM_WORKERS = 6
COLUMNS = ("flops", "bytes", "tokens", "steps", "busy_s")
LIMIT_S = 60.0
EXPIRED_S = -1.0  # as soon as it is written: whoever wants the lease next gets it


class Keeping(SimFleet):
    """Remembers every record that it handed over."""

    records: list[RequestRecord]

    def take_records(self) -> list[tuple[str, int, list[RequestRecord]]]:
        taken = super().take_records()
        self.records += [record for _, _, records in taken for record in records]
        return taken


@dataclass(slots=True)
class TroubleRig:
    """One fleet and one database; planes come and go, each in the run folder that it is given."""

    url: str
    fleet: Keeping
    now_s: float = START_S
    history: History = None  # type: ignore[assignment]
    plane: Plane = None  # type: ignore[assignment]

    @classmethod
    def of(cls, url: str) -> TroubleRig:
        traffic = SimTraffic(mean_rps=6.0, swing=0.0, prompt_median_tokens=800, prompt_p99_tokens=3000)
        fleet = Keeping(sim_config(cls.settings_in(Path("/nowhere")), traffic))
        fleet.records = []
        return cls(url, fleet)

    @staticmethod
    def settings_in(run_dir: Path) -> Settings:
        policy = RoutingPolicy(min_fleet_devices=2)
        return Settings(run_dir=run_dir, fleet_kind="sim", num_workers=NUM_WORKERS, num_prefill=2, routing=policy)

    async def start(self, run_dir: Path) -> Plane:
        """A new plane on what is there. Raises HistoryError."""
        self.history, settings = History.open(self.url), self.settings_in(run_dir)
        me = Holder(holder_id=str(run_dir), hostname="h", machine="m", pid=1, started_unix_s=self.now_s, address="")
        lease, verdict = self.history.take_lease("local", me, EXPIRED_S, Standing(reachable_s=inf))
        assert lease is not None, verdict
        self.history.hold("local", lease.fence)
        self.plane = await adopt(self.fleet, self.history, settings, lease, "test", lambda: self.now_s)
        self.plane.recorder.spill_after_s = 0.1
        await self.fleet.start(self.plane.wake)
        return self.plane

    async def end(self) -> None:
        """As SIGTERM ends it."""
        plane = self.plane
        await plane._orders.close()
        await plane.recorder.close()
        self.history.close()

    async def kill(self) -> None:
        """As kill -9 ends it: what is only in memory is gone."""
        self.plane.recorder._waiting.clear()
        await self.end()

    async def ticks(self, number: int) -> None:
        for _ in range(number):
            self.now_s += 1.0
            async with asyncio.timeout(LIMIT_S):
                await self.plane.tick()
            await asyncio.sleep(0.02)

    async def until(self, is_so: Callable[[], bool], what: str) -> None:
        for _ in range(600):
            if is_so():
                return
            await self.ticks(1)
        raise AssertionError(f"never: {what}")

    async def until_written(self) -> None:
        """Ticks here come faster than a real database writes: none comes meanwhile."""
        for _ in range(600):
            if await self.plane.recorder.flush():
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"never written: {self.plane.recorder.problem}")

    async def resize(self, prefill: int, why: str) -> Command:
        pools = {"prefill": prefill, "decode": NUM_WORKERS - prefill}
        word = (await self.preview(**pools)).needs_confirmation
        request = CommandRequest(action=Action(verb=Verb.RESIZE, **pools), why=why, confirmation=word)
        return await self.plane.submit(request, ALICE)

    async def undo(self, command: Command) -> Command:
        action = Action(verb=Verb.UNDO, command_id=command.command_id)
        return await self.plane.submit(CommandRequest(action=action, why="undo"), ALICE)

    async def preview(self, **pools: int) -> Preview:
        return await self.plane.preview(CommandRequest(action=Action(verb=Verb.RESIZE, **pools)))

    async def chart(self) -> None:
        query = SeriesQuery(
            fleet_id="local",
            metric="decode_tokens_per_s",
            since_unix_s=START_S,
            until_unix_s=self.now_s,
            step_s=10,
            by="fleet",
        )
        await self.plane.recorder.read(self.history.series, query)

    # --- checks -----------------------------------------------------------------------------------------------------

    def counted(self, scope: str) -> dict[tuple[str, str], dict[str, float]]:
        """Sums of all seconds, by (line's name, phase)."""
        return {
            ("" if scope == "fleet" else name, phase): {column: sums[column] for column in COLUMNS}
            for (each, name, phase), sums in self.history.totals("local").items()
            if each == scope
        }

    async def check_points(self) -> None:
        """Every total equals the workers' own counters: nothing is missing and nothing is there twice."""
        await self.ticks(1)
        assert await self.plane.recorder.flush()
        own: dict[str, dict[tuple[str, str], dict[str, float]]] = {"worker": {}, "role": {}, "fleet": {}}
        assert self.plane._observer.observation is not None
        for reading in self.plane._observer.observation.readings:
            for key, counters in reading.counters.items():
                role, _, phase = key.partition("/")
                for scope, name in (("worker", reading.worker_id), ("role", role), ("fleet", "")):
                    into = own[scope].setdefault((name, phase), dict.fromkeys(COLUMNS, 0.0))
                    for column in COLUMNS:
                        into[column] += getattr(counters, column)
        for scope, expected in own.items():
            found = self.counted(scope)
            for line, values in expected.items():
                if values["steps"]:
                    assert found.pop(line) == pytest.approx(values, rel=1e-9), (scope, line)
            assert not found

    def check_records(self) -> None:
        """Each once."""
        found = self.history.requests(RequestQuery(fleet_id="local", limit=100_000))
        assert sorted(each.request_id for each in found) == sorted(each.request_id for each in self.fleet.records)

    def check_commands(self, accepted: list[Command]) -> None:
        """All that were accepted are there, with their journals, and none that was refused."""
        found = [each for each in self.history.commands("local", 999) if each.who == ALICE.name]
        assert sorted(each.command_id for each in found) == [each.command_id for each in accepted]
        for each in found:
            assert len(each.steps) == len(set(each.steps))

    def roles(self) -> dict[Role, int]:
        held = [row.role for row in self.fleet.routes()]
        return {role: held.count(role) for role in (Role.PREFILL, Role.DECODE)}


async def outlive(rig: TroubleRig, trouble: AbstractContextManager[None], words: str) -> None:
    """A resize before, a refused one in the middle of the trouble, one after it; then every check."""
    await rig.ticks(20)
    accepted = [await rig.resize(3, "before")]
    await rig.ticks(3)
    with trouble:
        await rig.ticks(20)
        records_before = len(rig.fleet.records)
        assert words in await refusal(rig.resize(4, "while it is away"))
        assert "the history cannot be" in await refusal(rig.undo(accepted[0]))
        assert (await rig.preview(prefill=4, decode=2)).steps
        await rig.ticks(20)
        assert len(rig.fleet.records) > records_before
        assert any("commands are refused" in each for each in rig.plane._notices())
    await rig.until_written()
    accepted.append(await rig.resize(2, "after"))
    await rig.until(lambda: not rig.plane.desk.unfinished, "the commands have ended")
    await rig.check_points()
    rig.check_records()
    rig.check_commands(accepted)
    assert {(await rig.plane.command(each.command_id)).state for each in accepted} == {CommandState.DONE}
    assert rig.roles() == {Role.PREFILL: 2, Role.DECODE: 4}
    assert rig.plane.recorder.num_dropped == 0


async def refusal(asked: Awaitable[object]) -> str:
    """What a person is told, in one line."""
    with pytest.raises(HistoryError) as refused:
        await asked
    assert "\n" not in refused.value.detail
    return refused.value.detail
