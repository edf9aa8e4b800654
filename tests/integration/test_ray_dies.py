"""Ray's parts die, one after the other, under streams that nobody retries: what goes on, and what comes back."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from control.fleets.redis_store import redis_program
from control.processes import ProcessId, send_signal, tree_of
from control.settings import load_settings
from tests.integration.deployment import Deployment
from tests.integration.steady_clients import SteadyClients

pytestmark = pytest.mark.integration
MODEL = "llama-3.1-70b-fp8"
#: Streams at a time, each of a second and more, so that whatever is killed is killed under four of them.
NUM_CLIENTS = 4
TWO_EACH = 2 * NUM_CLIENTS


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Four paced workers in two processes, with the Redis that this machine has."""
    deployment = Deployment(tmp_path_factory.mktemp("ray") / "run", PHASELINE_PACED_WORKERS_PER_PROCESS="2")
    try:
        deployment.must("up", "--detach", "--kind", "paced", "--workers", "4")
        yield deployment
    finally:
        deployment.end()


def parts(deployment: Deployment, component: str, what: str) -> list[ProcessId]:
    """Processes of one component's tree: the one that is named, or all of it."""
    tree = tree_of(deployment.root(component))
    if what == "all":
        return tree
    found = [each for each in tree if what in name_of(each)]
    assert found, [name_of(each) for each in tree]
    return found[:1]


def name_of(each: ProcessId) -> str:
    try:
        process = psutil.Process(each.pid)
        return f"{process.name()} {' '.join(process.cmdline()[:1])}"
    except psutil.Error:
        return ""


def worker_pids(deployment: Deployment) -> dict[str, int | None]:
    return {each.worker_id: each.pid for each in deployment.snapshot().workers}


def is_settled(deployment: Deployment, num_workers: int = 4) -> bool:
    """Every component runs and every worker is in its role."""
    return all(each.is_ready for each in deployment.state.components.values()) and deployment.num_ready() == num_workers


def is_rebuilt(deployment: Deployment, before: dict[str, int | None]) -> bool:
    """Settled, and no worker runs in the process that it had. A node counts as ready before its predecessor's workers
    have noticed their end, so the first half alone may hold too early."""
    return is_settled(deployment, len(before)) and not set(before.values()) & set(worker_pids(deployment).values())


#: What ends with what: the GCS gives up when its Redis is gone, an actor's end is no end of its node.
FALLS = {"redis": ("redis", "ray"), "ray::NodeAgent": ()}


def kill(deployment: Deployment, component: str, what: str) -> None:
    falls = FALLS.get(what, FALLS.get(component, (component,)))
    before = {name: deployment.root(name) for name in falls}
    for each in parts(deployment, component, what):
        send_signal(each, signal.SIGKILL)
    for name in falls:
        deployment.until(lambda name=name: deployment.root_or_none(name) not in (None, before[name]), f"another {name}")
    deployment.until(lambda: is_settled(deployment), "the fleet")


@pytest.fixture
def forgetful(tmp_path: Path) -> Iterator[Deployment]:
    """Two paced workers and no Redis."""
    deployment = Deployment(tmp_path / "run", PHASELINE_RAY_REDIS="off")
    try:
        deployment.must("up", "--detach", "--kind", "paced", "--workers", "2")
        yield deployment
    finally:
        deployment.end()


def test_without_redis_a_head_that_dies_is_told_with_what_it_took_and_the_fleet_is_built_anew(
    forgetful: Deployment,
) -> None:
    before = worker_pids(forgetful)
    node = forgetful.root("ray-node")
    for each in parts(forgetful, "ray", "gcs_server"):
        send_signal(each, signal.SIGKILL)
    forgetful.until(lambda: forgetful.root_or_none("ray-node") not in (None, node), "another node")
    forgetful.until(lambda: is_rebuilt(forgetful, before), "the fleet, built anew")
    assert any("without Redis it takes all workers along" in line for line in forgetful.state.progress)
    notices = forgetful.snapshot().notices
    assert any("Ray's head was lost with all workers, as it has no Redis" in each for each in notices)
    with SteadyClients(f"http://127.0.0.1:{forgetful.ports['GATEWAY']}", MODEL, num_clients=NUM_CLIENTS) as clients:
        forgetful.until(lambda: clients.num_served > TWO_EACH, "traffic")
    assert clients.failures == []


HEAD_PARTS = [("ray", "gcs_server"), ("ray", "raylet"), ("ray", "ray::DashboardAgent"), ("ray", "all")]


@pytest.mark.parametrize(("component", "what"), [*HEAD_PARTS, ("redis", "all"), ("ray-node", "ray::NodeAgent")])
def test_workers_and_streams_do_not_notice(fleet: Deployment, component: str, what: str) -> None:
    if redis_program(load_settings()) is None and component != "ray-node":
        pytest.fail("redis-server is not installed: what this shows cannot be shown")
    before = worker_pids(fleet)
    with SteadyClients(f"http://127.0.0.1:{fleet.ports['GATEWAY']}", MODEL, num_clients=NUM_CLIENTS) as clients:
        fleet.until(lambda: clients.num_served > TWO_EACH, "traffic")
        kill(fleet, component, what)
        served = clients.num_served
        fleet.until(lambda: clients.num_served > served + TWO_EACH, "traffic afterwards")
    assert clients.failures == []
    assert worker_pids(fleet) == before


def test_a_worker_that_dies_after_the_head_did_is_started_again(fleet: Deployment) -> None:
    before = worker_pids(fleet)
    victim = next(each for each in fleet.processes() if each.pid == before["w0"])
    send_signal(victim, signal.SIGKILL)
    fleet.until(lambda: worker_pids(fleet)["w0"] != before["w0"] and is_settled(fleet), "w0 anew")
    assert worker_pids(fleet)["w3"] == before["w3"]


def test_a_node_that_dies_takes_its_workers_along_and_the_fleet_is_built_anew(fleet: Deployment) -> None:
    before = worker_pids(fleet)
    kill(fleet, "ray-node", "raylet")
    fleet.until(lambda: is_rebuilt(fleet, before), "the fleet, built anew")
    assert any("takes all workers along" in line for line in fleet.state.progress)
    with SteadyClients(f"http://127.0.0.1:{fleet.ports['GATEWAY']}", MODEL, num_clients=NUM_CLIENTS) as clients:
        fleet.until(lambda: clients.num_served > TWO_EACH, "traffic")
    assert clients.failures == []
