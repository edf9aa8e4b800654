"""Every scenario that ships, on tiny real workers: nothing is lost, changed, leaked or done twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench._postgresql import private_cluster
from control.faults.place import Place
from control.faults.postgresql import DATA_NAME
from control.faults.runner import Session
from control.faults.scenario import shipped
from tests.faults.conftest import LIMITS
from tests.integration.deployment import Deployment

pytestmark = pytest.mark.integration

SEED = 1
NEEDS_MORE = {"restart-postgresql"}  # a server of its own


@pytest.mark.parametrize("name", sorted(set(shipped()) - NEEDS_MORE))
def test_a_scenario_that_ships_holds_all_its_checks(place: Place, name: str) -> None:
    """A stage may be over before it is seen: then nothing was done to anybody, and the scenario is begun anew."""
    for seed in range(SEED, SEED + 3):
        report = Session(place, seed).run(shipped()[name])
        if [each.name for each in report.checks if each.state == "failed"] != ["events"]:
            break
    assert report.ok, json.dumps(report.as_dict(), indent=1)
    assert not report.simulated


def test_a_postgresql_that_restarts_loses_nothing(tmp_path: Path) -> None:
    """On paced workers: what is asked here is the history's, and they start in a moment."""
    own = {"worker_kind": "paced", "num_workers": "4", "num_prefill": "1", "profile": "local", **LIMITS}
    with private_cluster() as cluster:
        settings = {f"PHASELINE_{name.upper()}": value for name, value in {**own, "database_url": cluster.url}.items()}
        deployment = Deployment(tmp_path / "run", **settings)
        try:
            deployment.must("up", "--detach")
            (deployment.run_dir / DATA_NAME).symlink_to(cluster.folder / "data")
            (report,) = deployment.json("faults", "run", "restart-postgresql", "--yes", "--unsafe", "--seed", "1")
            assert report["ok"], json.dumps(report, indent=1)
        finally:
            deployment.end()


def test_the_command_line_runs_a_scenario_and_reports_it(tiny: Deployment) -> None:
    done = tiny.run("faults", "run", "drop-connection", "--yes", "--json", "--seed", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    (report,) = json.loads(done.stdout)
    assert (report["ok"], report["scenario"], report["seed"]) == (True, "drop-connection", 2)
    assert {each["state"] for each in report["checks"]} == {"ok"}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("drop-connection",), 4, "--yes does it"),
        (("kill-gateway", "--yes"), 4, "--unsafe runs it"),
        (("no-such", "--yes"), 2, "no fault scenario 'no-such'"),
    ],
)
def test_what_the_command_line_does_not_run(tiny: Deployment, arguments: tuple[str, ...], code: int, said: str) -> None:
    done = tiny.run("faults", "run", *arguments)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr


def test_a_plane_elsewhere_is_refused(tiny: Deployment) -> None:
    done = tiny.run("--url", f"http://127.0.0.1:{tiny.ports['API']}", "faults", "run", "drop-connection", "--yes")
    assert done.returncode == 4
    assert "on this host only" in done.stderr
