"""The plane is killed at every point of a resize: before, inside and after each durable write, around each order."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from control.errors import SettingsError
from control.history.store import History
from control.types import CommandState, Role
from control.write_points import MOMENTS, crash_point, pass_by
from tests.control.crash_rig import CrashRig, PlaneKilled

ROOT = Path(__file__).resolve().parents[2]
TARGET = [Role.PREFILL, Role.PREFILL, Role.DECODE, Role.DECODE]
BEFORE = [Role.PREFILL, Role.DECODE, Role.DECODE, Role.DECODE]
WRITES = {"record_command", "update_command", "next_fence", "write_tick"}
ORDERS = {"order-place", "order-flip"}


@pytest.fixture
async def make_rig(tmp_path: Path) -> AsyncIterator[Callable[[str], CrashRig]]:
    rigs: list[CrashRig] = []

    def make(name: str) -> CrashRig:
        (tmp_path / name).mkdir()
        rigs.append(CrashRig(tmp_path / name, f"sqlite:///{tmp_path / name / 'history.db'}"))
        return rigs[-1]

    yield make
    for rig in rigs:
        await rig.bury()


def roles(rig: CrashRig) -> list[Role]:
    return [row.role for row in rig.fleet.routes()]


async def whole_life(rig: CrashRig, kill_at: int | None) -> None:
    """First start, workers placed, traffic, a resize to its end. Raises PlaneKilled."""
    await rig.start(kill_at)
    await rig.until(rig.is_settled, "the workers are placed")
    for _ in range(8):
        await rig.tick()
    command = await rig.resize()
    await rig.until(lambda: rig.ended(command), "the resize ends")
    await rig.tick()


async def killed_and_started_again(rig: CrashRig, kill_at: int) -> None:
    """The client of a killed plane sends its command again only after the next plane has settled."""
    point = f"point {kill_at}"
    with pytest.raises(PlaneKilled):
        await whole_life(rig, kill_at)
    point = f"{point}: {rig.points.reached[-1]}"
    await rig.bury()
    await rig.start()
    old_fence = max(rig.fleet.fences, default=0)
    assert rig.plane._fence > old_fence or old_fence == 0, point
    await rig.until(rig.is_settled, f"the fleet converges, {point}")
    recorded = rig.commands()
    assert sorted(roles(rig)) == sorted(TARGET if recorded else BEFORE), (
        point
    )  # who flips depends on who has least work
    command = await rig.resize()
    await rig.until(lambda: rig.ended(command), f"the resize ends, {point}")
    await rig.until(lambda: rig.fleet.fences == {rig.plane._fence}, f"every worker obeys the new plane, {point}")
    assert [(each.command_id, each.state) for each in rig.commands()] == [(command.command_id, CommandState.DONE)], (
        point
    )
    steps = rig.commands()[0].steps
    assert len(set(steps)) == len(steps), point
    assert sorted(roles(rig)) == sorted(TARGET), point
    assert dict(zip(sorted(rig.plane.desired.roles), roles(rig), strict=True)) == dict(rig.plane.desired.roles), point
    assert max(rig.fleet.role_orders.values()) == 1, (point, rig.fleet.role_orders)
    assert len(rig.fleet._workers) == 4, point
    assert all(record.status == 200 for record in rig.fleet.records), point


async def test_a_plane_killed_at_any_point_of_a_resize_converges_with_no_effect_twice(
    make_rig: Callable[[str], CrashRig],
) -> None:
    undisturbed = make_rig("undisturbed")
    await whole_life(undisturbed, None)
    reached = undisturbed.points.reached
    await undisturbed.bury()
    assert {point for point in reached if "order" in point} == {f"{o}:{m}" for o in ORDERS for m in ("before", "after")}
    written = {point.partition(":")[0] for point in reached} - ORDERS - {"observe"}
    assert written == WRITES
    assert all(f"{write}:{moment}" in reached for write in written for moment in MOMENTS)
    assert undisturbed.fleet.records
    for number in points_to_try(reached):
        await killed_and_started_again(make_rig(str(number)), number)


def points_to_try(reached: list[str]) -> list[int]:
    """Every point of a command; of the many equal ones of idle ticks those of the first, and of three later ticks."""
    ticks = [n for n, point in enumerate(reached) if point.startswith(("write_tick", "observe"))]
    idle = set(ticks[4:]) - set(ticks[len(ticks) // 2 : len(ticks) // 2 + 4]) - set(ticks[-8:])
    return [number for number in range(len(reached)) if number not in idle]


def test_a_crash_point_in_the_environment_names_a_write_and_a_moment() -> None:
    assert crash_point({}) is pass_by
    reach = crash_point({"PHASELINE_CRASH_AT": "update_command:after#2"})
    reach("update_command:after")  # the first time: goes by
    reach("record_command:after")
    for bad in ("update_command", "update_command:during", "update_command:after#x"):
        with pytest.raises(SettingsError, match="PHASELINE_CRASH_AT"):
            crash_point({"PHASELINE_CRASH_AT": bad})


def test_the_planes_own_process_dies_at_the_point_that_its_environment_names(tmp_path: Path) -> None:
    """next_fence is durable, and the plane is gone: the next one takes a larger fence."""
    own = {"RUN_DIR": str(tmp_path), "FLEET_KIND": "sim", "API_PORT": str(free_port()), "CRASH_AT": "next_fence:after"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PHASELINE_")}
    environment |= {f"PHASELINE_{name}": value for name, value in own.items()}
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-m", "control.plane_main"],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    history = History.open(f"sqlite:///{tmp_path / 'history.db'}")
    assert history.next_fence("local") == 3
    history.close()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
