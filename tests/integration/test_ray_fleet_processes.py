"""RayFleet on a real head: one scenario in a process of its own, and what each part of it must show."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from control.components import components
from control.deployment import ComponentRecord, clear_shared_memory, end_together
from control.runner import Runner
from control.settings import load_settings
from tests.integration.deployment import LIMIT_S, ROOT, Deployment

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    place = Deployment(tmp_path_factory.mktemp("fleet") / "run", PHASELINE_PACED_WORKERS_PER_PROCESS="2")
    place.environment |= {"PHASELINE_WORKER_KIND": "paced", "PHASELINE_NUM_WORKERS": "4"}
    settings = load_settings(
        run_dir=place.run_dir,
        ray_port=place.ports["RAY"],
        worker_kind="paced",
        num_workers=4,
        paced_workers_per_process=2,
        ray_redis="off",
    )
    (place.run_dir / "logs").mkdir(parents=True)
    runners = [Runner(each, ComponentRecord(name=each.name, stop_limit_s=15.0)) for each in components(settings)[:2]]
    try:
        for runner in runners:
            runner.start(0.0)
            place.until(runner.probe, runner.record.name)
        yield scenario(place)
    finally:
        end_together([runner.record for runner in runners], lambda _line: None)
        clear_shared_memory(settings.effective_shm_dir)


def scenario(place: Deployment) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.ray_fleet_scenario"],
        cwd=ROOT,
        env=place.environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    last: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return last


def roles(routes: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(each["role"], each["state"]) for each in routes]


def test_workers_are_unassigned_until_they_are_placed(told: dict[str, Any]) -> None:
    assert told["before"] == ["unassigned"] * 4
    assert roles(told["placed"]) == [("prefill", "ready"), *[("decode", "ready")] * 3]


def test_paced_workers_share_processes_and_are_marked(told: dict[str, Any]) -> None:
    epochs = [each["epoch"] for each in told["placed"]]
    assert epochs[0] == epochs[1] != epochs[2] == epochs[3]
    assert len({each["address"] for each in told["placed"]}) == 4
    assert all(each["simulated"] for each in told["placed"])
    assert told["devices_are_named"] == ["h100-sxm-80gb"] * 4


def test_an_order_of_an_older_fence_is_refused_and_changes_nothing(told: dict[str, Any]) -> None:
    assert not told["old_fence"]["accepted"]
    assert "fence" in told["old_fence"]["detail"]


def test_an_unknown_worker_is_refused_by_name(told: dict[str, Any]) -> None:
    assert told["stranger"] == {"accepted": False, "detail": "no worker w9 in fleet local", "retry_helps": False}


def test_a_flip_is_accepted_and_seen_in_the_routes(told: dict[str, Any]) -> None:
    assert told["flip"]["accepted"]
    assert roles(told["flipped"])[1] == ("prefill", "ready")
    assert told["flipped"][1]["epoch"] == told["placed"][1]["epoch"]


def test_a_killed_process_is_seen_at_once_and_only_its_workers_are_lost(told: dict[str, Any]) -> None:
    states = [each["state"] for each in told["lost"]]
    assert states == ["ready", "ready", "failed", "failed"]


def test_a_restarted_process_is_unassigned_under_a_newer_epoch_and_says_why(told: dict[str, Any]) -> None:
    assert roles(told["restarted"])[2:] == [("unassigned", "unassigned")] * 2
    assert told["restarted"][3]["epoch"] > told["placed"][3]["epoch"]
    lives = told["lives"]
    assert [each["num_restarts"] for each in lives] == [0, 0, 1, 1]
    assert "ended without a word" in lives[3]["last_restart_reason"]
    assert [each["problem"] for each in lives] == [""] * 4


def test_a_new_plane_adopts_the_workers_as_they_are(told: dict[str, Any]) -> None:
    assert told["adopted"] == told["restarted"]
