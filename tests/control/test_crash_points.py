"""A plane is killed, paused or cut off from its database at every point of every verb, and another one takes over."""

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
from control.types.commands import Verb
from control.write_points import FILE_NAME, MOMENTS, crash_point, pass_by
from tests.control.crash_rig import CrashRig, Trouble
from tests.control.crash_scripts import check, points_to_try, run, settle

ROOT = Path(__file__).resolve().parents[2]
WRITES = {"take_lease", "renew_lease", "record_command", "update_command", "write_tick"}
ORDERS = {
    Verb.RESIZE: {"order-place", "order-flip"},
    Verb.FLIP: {"order-place", "order-flip"},
    Verb.DRAIN: {"order-place", "order-drain"},
    Verb.UNDRAIN: {"order-place", "order-drain", "order-undrain"},
    Verb.SET_ROUTING: {"order-place"},
    Verb.UNDO: {"order-place", "order-flip"},
}
#: Every n-th point, to take minutes; bench/planes.py tries them all.
STRIDES = {Trouble.KILL: 5, Trouble.PAUSE: 9, Trouble.CUT: 9}

MakeRig = Callable[[int | None, Trouble], CrashRig]


@pytest.fixture
async def make_rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MakeRig]:
    monkeypatch.setattr("control.history.database.BUSY_TIMEOUT_S", 0.2)
    rigs: list[CrashRig] = []

    def make(at: int | None, trouble: Trouble) -> CrashRig:
        folder = tmp_path / str(len(rigs))
        folder.mkdir()
        rigs.append(CrashRig(folder, f"sqlite:///{folder / 'history.db'}", at, trouble))
        return rigs[-1]

    yield make
    for rig in rigs:
        await rig.bury()


@pytest.mark.parametrize("verb", list(ORDERS))
async def test_an_undisturbed_command_passes_every_kind_of_point(make_rig: MakeRig, verb: Verb) -> None:
    rig = make_rig(None, Trouble.KILL)
    given = await run(rig, verb)
    reached = rig.first.points.reached
    check(rig, given, rig, "undisturbed")
    assert {point for point in reached if "order" in point} == {
        f"{order}:{moment}" for order in ORDERS[verb] for moment in ("before", "after")
    }
    written = {point.partition(":")[0] for point in reached if not point.startswith(("order", "observe"))}
    assert written - {"put_alerts"} == WRITES  # a pool that is empty for a moment pends
    assert all(f"{write}:{moment}" in reached for write in written for moment in MOMENTS)


@pytest.mark.parametrize("trouble", list(Trouble))
@pytest.mark.parametrize("verb", list(ORDERS))
async def test_whatever_happens_to_a_plane_at_any_point_the_next_one_finishes_and_no_effect_comes_twice(
    make_rig: MakeRig, verb: Verb, trouble: Trouble
) -> None:
    undisturbed = make_rig(None, trouble)
    await run(undisturbed, verb)
    is_most = verb is Verb.RESIZE and trouble is Trouble.KILL
    for number in points_to_try(undisturbed.first.points.reached)[:: 1 if is_most else STRIDES[trouble]]:
        rig = make_rig(number, trouble)
        given = await run(rig, verb)
        what = f"{trouble} at point {number}: {rig.first.points.reached[number]}"
        assert rig.first.points.in_trouble, what
        await settle(rig)
        check(rig, given, undisturbed, what)
        await rig.bury()


def test_a_crash_point_in_the_environment_names_a_write_and_a_moment() -> None:
    assert crash_point({}) is pass_by
    reach = crash_point({"PHASELINE_CRASH_AT": "update_command:after#2"})
    reach("update_command:after")  # the first time: goes by
    reach("record_command:after")
    for bad in ("update_command", "update_command:during", "update_command:after#x"):
        with pytest.raises(SettingsError, match="PHASELINE_CRASH_AT"):
            crash_point({"PHASELINE_CRASH_AT": bad})


def test_a_file_in_the_run_folder_names_a_point_for_as_long_as_it_is_there(tmp_path: Path) -> None:
    """Each call may be the last one of this process: those below are all points that are not asked for."""
    reach = crash_point({}, tmp_path)
    asks = tmp_path / FILE_NAME
    reach("write_tick:after")
    asks.write_text("write_tick:after#2")
    reach("write_tick:after")  # the first time: goes by
    reach("write_tick:before")
    asks.unlink()
    reach("write_tick:after")  # nobody asks any more
    asks.write_text("write_tick:after#2")
    reach("write_tick:after")  # the first time of another ask
    asks.write_text("no point at all")
    reach("write_tick:after")


def test_the_planes_own_process_dies_at_the_point_that_its_environment_names(tmp_path: Path) -> None:
    """The lease is taken, and the plane is gone: the next one follows at once, under a larger fence."""
    own = {"RUN_DIR": str(tmp_path), "FLEET_KIND": "sim", "API_PORT": str(free_port()), "CRASH_AT": "take_lease:after"}
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
    lease, _ = history.lease("local")
    assert lease is not None
    assert lease.fence == 2
    history.close()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
