"""A deployment with a standby plane: the active one is killed in a resize under traffic, the other finishes it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.client import PhaselineClient
from control.processes import ProcessId, identify, send_signal
from control.types.commands import Action, CommandRequest, CommandState, Verb
from control.types.fleet import FleetSnapshot
from tests.integration.deployment import LIMIT_S, ROOT, Deployment

pytestmark = pytest.mark.integration


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Deployment]:
    deployment = Deployment(
        tmp_path / "run", PHASELINE_NUM_PLANES="2", PHASELINE_NUM_PREFILL="1", PHASELINE_PACED_WORKERS_PER_PROCESS="2"
    )
    try:
        deployment.must("up", "--detach", "--kind", "paced", "--workers", "4")
        yield deployment
    finally:
        deployment.end()


def active(snapshot: FleetSnapshot) -> ProcessId:
    assert snapshot.plane is not None
    found = identify(snapshot.plane.pid)
    assert found is not None
    return found


def test_a_standby_finishes_the_resize_of_a_plane_that_is_killed_and_no_request_fails(fleet: Deployment) -> None:
    token = (fleet.run_dir / "secrets" / "operator_token").read_text().strip()
    traffic = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "control.cli.main",
            "traffic",
            "--json",
            "--quiet",
            "--rate",
            "2",
            "--duration",
            str(LIMIT_S),
        ],
        cwd=ROOT,
        env=fleet.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    request = CommandRequest(action=Action(verb=Verb.RESIZE, prefill=2, decode=2), idempotency_key="once")
    with PhaselineClient(f"http://127.0.0.1:{fleet.ports['API']}", token) as client:
        before = client.snapshot()
        first = active(before)
        assert f"pid {first.pid} on" in fleet.must("status")
        assert "standing by: pid" in fleet.must("status")
        command = client.submit(request)
        send_signal(first, signal.SIGKILL)
        assert client.submit(request).command_id == command.command_id
        done = client.wait(command.command_id, LIMIT_S)
        assert done.state is CommandState.DONE
        fleet.until(lambda: all(each.pid for each in client.snapshot().workers), "the new plane's first look")
        after = client.snapshot()
        assert active(after) != first
        assert {each.worker_id: each.pid for each in after.workers} == {
            each.worker_id: each.pid for each in before.workers
        }
        assert [each.num_ready for each in after.pools] == [2, 2, 0]
        assert [each.command_id for each in client.commands() if each.idempotency_key] == [command.command_id]
        fleet.until(lambda: "standing by: pid" in fleet.must("status"), "a new standby")
    traffic.send_signal(signal.SIGINT)  # sends no more, and waits for what is open
    report = json.loads(traffic.communicate(timeout=LIMIT_S)[0].splitlines()[-1])
    assert report["failed"] == 0
    assert report["offered"] > 0
