"""`phaseline upgrade` under streams that nobody retries: by another build of this code, and by one that is broken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.processes import ProcessId
from tests.integration.deployment import ROOT, Deployment
from tests.integration.steady_clients import SteadyClients

pytestmark = pytest.mark.integration
MODEL = "llama-3.1-70b-fp8"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two gateways, two paced workers in processes of their own."""
    place = Deployment(
        tmp_path_factory.mktemp("up") / "run", PHASELINE_PACED_WORKERS_PER_PROCESS="1", PHASELINE_NUM_GATEWAYS="2"
    )
    try:
        place.must("up", "--detach", "--kind", "paced", "--workers", "2")
        yield place
    finally:
        place.end()


def other_build(folder: Path, **changed: str) -> Path:
    """This code as another checkout; `changed` is appended to modules of the gateway and the engine."""
    for package in ("control", "engine", "app", "data", "tests"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "run"))
    for path, text in {"engine/lifecycle.py": "# another build", **changed}.items():
        with open(folder / path, "a") as file:
            file.write(f"\n{text}\n")
    return folder


def roots(fleet: Deployment) -> dict[str, ProcessId]:
    return {name: fleet.root(name) for name in fleet.state.components}


def workers(fleet: Deployment) -> dict[str, tuple[str, str, int | None]]:
    return {each.worker_id: (each.role, each.state, each.pid) for each in fleet.snapshot().workers}


def upgraded_by(fleet: Deployment, code: Path) -> tuple[int, dict[str, tuple[str, str]]]:
    """Exit code, and how each step went."""
    before, fleet.environment = fleet.environment, {**fleet.environment, "PYTHONPATH": str(code)}
    try:
        done = fleet.run("upgrade", "--json", cwd=code)
    finally:
        fleet.environment = before
    assert done.stdout, done.stderr
    steps = json.loads(done.stdout)["steps"]
    return done.returncode, {each["name"]: (each["state"], each["text"]) for each in steps}


def test_code_that_does_not_start_leaves_everything_as_it_was(fleet: Deployment, tmp_path: Path) -> None:
    before, served_by = roots(fleet), workers(fleet)
    broken = other_build(tmp_path, **{"control/gateway/mover.py": "raise RuntimeError('a broken build')"})
    with SteadyClients(f"http://127.0.0.1:{fleet.ports['GATEWAY']}", MODEL, num_clients=2) as clients:
        code, steps = upgraded_by(fleet, broken)
        served = clients.num_served
        fleet.until(lambda: clients.num_served > served + 5, "traffic afterwards")
    assert code == 1
    state, text = steps["gateway-1"]
    assert state == "failed"
    assert "a broken build" in text
    assert "left as they were: gateway, plane, console, workers" in text
    assert steps["plane"] == ("waiting", "")
    assert clients.failures == []
    assert roots(fleet) == before
    assert workers(fleet) == served_by


def test_every_process_is_replaced_and_no_stream_notices(fleet: Deployment, tmp_path: Path) -> None:
    before, served_by = roots(fleet), workers(fleet)
    with SteadyClients(f"http://127.0.0.1:{fleet.ports['GATEWAY']}", MODEL, num_clients=2) as clients:
        code, steps = upgraded_by(fleet, other_build(tmp_path))
        not_ready = [name for name, each in fleet.state.components.items() if not each.is_ready]
        served = clients.num_served
        fleet.until(lambda: clients.num_served > served + 5, "traffic afterwards")
    assert (code, clients.failures) == (0, []), steps
    assert {state for state, _ in steps.values()} == {"done", "kept"}
    assert {name for name, root in roots(fleet).items() if root == before[name]} <= {"ray-node", "redis", "ray"}
    assert steps["ray-node"][0] == "kept"
    assert not_ready == []
    now = workers(fleet)
    assert {name: row[:2] for name, row in now.items()} == {name: row[:2] for name, row in served_by.items()}
    assert not {row[2] for row in now.values()} & {row[2] for row in served_by.values()}
    assert {each["why"] for each in fleet.json("commands", "--limit", "4")} == {"upgrade"}
