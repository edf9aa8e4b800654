"""`up`, its processes, and `down`: what runs and listens, what survives which death, and that nothing is left.

Nothing listens beyond loopback: not ours, not Ray's, not Streamlit's.
"""

from __future__ import annotations

import contextlib
import ipaddress
import signal
from collections.abc import Iterator

import httpx
import psutil
import pytest

from control.processes import send_signal
from tests.integration.deployment import Deployment

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def paced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """`phaseline up --detach --kind paced`, two workers in two processes; ended by `phaseline down`."""
    deployment = Deployment(tmp_path_factory.mktemp("paced") / "run", PHASELINE_PACED_WORKERS_PER_PROCESS="1")
    try:
        deployment.must("up", "--detach", "--kind", "paced", "--workers", "2")
        yield deployment
    finally:
        deployment.end()


def test_up_brings_every_worker_to_its_role(paced: Deployment) -> None:
    workers = paced.json("status")["workers"]
    assert [(each["worker_id"], each["role"], each["state"]) for each in workers] == [
        ("w0", "prefill", "ready"),
        ("w1", "decode", "ready"),
    ]
    assert all(each["simulated"] and each["pid"] for each in workers)


def test_the_gateway_serves_through_both_pools(paced: Deployment) -> None:
    body = {"model": "llama-3.1-70b-fp8", "prompt": "word " * 40, "max_tokens": 20}
    answer = httpx.post(f"http://127.0.0.1:{paced.ports['GATEWAY']}/v1/completions", json=body, timeout=60.0)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 20
    assert "rule=remote; prefill=w0; decode=w1" in answer.headers["X-Phaseline-Route"]


def test_a_second_up_in_the_same_run_folder_is_refused(paced: Deployment) -> None:
    done = paced.run("up", "--kind", "paced", "--workers", "2", "--detach")
    assert done.returncode == 1
    assert done.stderr == f"phaseline: already running in {paced.run_dir}; `phaseline down` ends it\n"


def test_a_port_in_use_is_named_with_its_setting_before_anything_starts(paced: Deployment, sim: Deployment) -> None:
    sim.environment["PHASELINE_API_PORT"] = str(paced.ports["API"])
    done = sim.run("up", "--detach")
    assert done.returncode == 2
    assert done.stderr.startswith(f"phaseline: setting api_port: port {paced.ports['API']} is in use by ")
    assert not sim.processes()


def test_a_command_waits_for_its_end(paced: Deployment) -> None:
    assert "remote_share" in paced.must("route", "show")
    assert "done" in paced.must("route", "set", "remote_share=0.5", "--why", "canary", "--wait")
    newest = paced.json("commands", "--limit", "1")[0]
    assert (newest["state"], newest["why"], newest["who"]) == ("done", "canary", "operator")
    paced.must("undo", str(newest["command_id"]), "--wait")
    assert paced.json("route", "show")["policy"]["remote_share"] == 1.0


def test_a_killed_plane_comes_back_and_its_workers_never_left(paced: Deployment) -> None:
    before = epochs(paced)
    plane = paced.root("plane")
    send_signal(plane, signal.SIGKILL)
    paced.until(lambda: paced.state.components["plane"].is_ready and paced.root("plane") != plane, "a new plane")
    paced.until(lambda: paced.num_ready() == 2, "both workers")
    assert epochs(paced) == before


def epochs(deployment: Deployment) -> dict[str, int]:
    return {each.worker_id: each.epoch for each in deployment.snapshot().workers}


def test_a_killed_worker_is_started_again_under_a_new_epoch_and_gets_its_role_back(paced: Deployment) -> None:
    before = paced.snapshot().workers[1]
    send_signal(next(each for each in paced.processes() if each.pid == before.pid), signal.SIGKILL)

    def is_back() -> bool:
        now = paced.snapshot().workers[1]
        return now.epoch > before.epoch and (now.role, now.state) == ("decode", "ready")

    paced.until(is_back, "w1 under a new epoch")
    now = paced.snapshot().workers[1]
    assert now.num_restarts == before.num_restarts + 1
    assert f"process {before.pid} ended without a word" in now.last_restart_reason


def test_up_takes_over_what_a_killed_supervisor_left(sim: Deployment) -> None:
    sim.must("up", "--detach")
    plane, supervisor = sim.root("plane"), sim.state.supervisor
    send_signal(supervisor, signal.SIGKILL)
    sim.until(lambda: not supervisor.is_alive, "the supervisor's end")
    assert plane.is_alive
    assert "plane runs already" in sim.must("up", "--detach")
    assert sim.root("plane") == plane
    assert sim.state.supervisor != supervisor
    everything = sim.processes()
    sim.must("down")
    assert not [each for each in everything if each.is_alive]


def test_down_ends_what_a_killed_supervisor_left(sim: Deployment) -> None:
    assert set(sim.json("up", "--detach")) == {"api", "console"}
    everything, supervisor = sim.processes(), sim.state.supervisor
    send_signal(supervisor, signal.SIGKILL)
    sim.until(lambda: not supervisor.is_alive, "the supervisor's end")
    assert "the supervisor is gone" in sim.must("down")
    assert not [each for each in everything if each.is_alive]
    assert sim.must("down") == f"nothing runs in {sim.run_dir}\n"


def test_up_prints_a_link_that_logs_in_once(sim: Deployment) -> None:
    told = sim.must("up", "--detach")
    code = next(line for line in told.splitlines() if "?code=" in line).rpartition("?code=")[2]
    api = f"http://127.0.0.1:{sim.ports['API']}/api/v1/login"
    assert httpx.post(api, json={"code": code}, timeout=10.0).json()["principal"]["role"] == "operator"
    assert httpx.post(api, json={"code": code}, timeout=10.0).status_code == 401


def listeners(deployment: Deployment) -> dict[tuple[str, int], str]:
    """(address, port) -> process name, over every process of the deployment; UDP sockets that are bound count too."""
    found = {}
    for each in deployment.processes():
        process = each.find()
        if process is None:
            continue
        with contextlib.suppress(psutil.NoSuchProcess):
            for one in process.net_connections(kind="inet"):
                if one.status == psutil.CONN_LISTEN or (one.type == 2 and one.laddr and not one.raddr):
                    found[(one.laddr.ip, one.laddr.port)] = process.name()
    return found


def is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback


def test_every_listening_socket_is_on_loopback(paced: Deployment) -> None:
    found = listeners(paced)
    outside = {f"{name} on {address}:{port}" for (address, port), name in found.items() if not is_loopback(address)}
    assert not outside
    assert {port for _, port in found} >= set(paced.ports.values())


def test_nothing_can_be_read_or_changed_without_a_token(paced: Deployment) -> None:
    api = f"http://127.0.0.1:{paced.ports['API']}/api/v1"
    assert httpx.get(f"{api}/fleets/-/snapshot", timeout=10.0).status_code == 401
    body = {"action": {"verb": "resize", "prefill": 1, "decode": 1}}
    assert httpx.post(f"{api}/commands", json=body, timeout=10.0).status_code == 401


def test_secrets_are_readable_by_their_owner_alone(paced: Deployment) -> None:
    secrets = [each for each in (paced.run_dir / "secrets").iterdir() if each.is_file()]
    assert {"fleet_token", "operator_token", "ray_token"} <= {each.name for each in secrets}
    assert {each.stat().st_mode & 0o077 for each in secrets} == {0}
