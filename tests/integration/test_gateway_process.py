"""The gateway as a process: it serves without a plane, ends its open streams on SIGTERM, and fails in one line."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "control" / "gateway"))

from gateway_builders import LOCAL_ALWAYS, until, write_model_folder

from control.fleets.fleet_token import fleet_token
from control.gateway.null_worker import NullConfig, NullWorker
from control.gateway.plane_link import save_table
from control.types import Role, RoutingTable, WorkerRoute, WorkerState

pytestmark = pytest.mark.integration
LIMIT_S = 60.0


class Process:
    """`python -m control.gateway.main` in a run folder of its own; ended by its id."""

    def __init__(self, run_dir: Path, **settings: str) -> None:
        self.port = settings.pop("PHASELINE_GATEWAY_PORT", "") or free_port()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PHASELINE_")}
        environment |= {
            "PHASELINE_RUN_DIR": str(run_dir),
            "PHASELINE_FLEET_ID": "test",
            "PHASELINE_MODEL": str(run_dir / "null"),
            "PHASELINE_GATEWAY_PORT": self.port,
            "PHASELINE_API_PORT": free_port(),
            "PHASELINE_DRAIN_LIMIT_S": "30",
            **settings,
        }
        command = [sys.executable, "-m", "control.gateway.main"]
        self.child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def ready(self) -> None:
        async with asyncio.timeout(LIMIT_S), httpx.AsyncClient() as client:
            while True:
                assert self.child.poll() is None, self.child.stderr and self.child.stderr.read()
                try:
                    if (await client.get(f"{self.url}/readyz")).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.05)

    async def ended(self) -> int:
        await until(lambda: self.child.poll() is not None, LIMIT_S)
        return int(self.child.returncode)

    def last_words(self) -> str:
        assert self.child.stderr is not None
        return self.child.stderr.read()


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    write_model_folder(tmp_path / "null")
    return tmp_path


@pytest.fixture
def started(run_dir: Path) -> Iterator[list[Process]]:
    processes: list[Process] = []
    yield processes
    for process in processes:
        if process.child.poll() is None:
            process.child.kill()
            process.child.wait()
        if process.child.stderr is not None:
            process.child.stderr.close()


async def with_worker(run_dir: Path, **shape: float) -> NullWorker:
    """A null worker, in the table that is kept on disk."""
    worker = NullWorker(NullConfig(token=fleet_token(run_dir), **shape))  # type: ignore[arg-type]
    address = await worker.start()
    row = WorkerRoute(worker_id="null-0", epoch=1, address=address, role=Role.MIXED, state=WorkerState.READY)
    table = RoutingTable(
        version=1, fleet_id="test", model_id="null", fence=1, num_devices=1, policy=LOCAL_ALWAYS, workers=(row,)
    )
    save_table(run_dir / "gateway" / "table.json", table)
    return worker


async def test_it_serves_without_a_plane_and_ends_its_open_streams_when_it_is_told_to_stop(
    run_dir: Path, started: list[Process]
) -> None:
    worker = await with_worker(run_dir, step_s=0.01)
    process = Process(run_dir)
    started.append(process)
    await process.ready()
    body = {"model": "null", "prompt": "Paris", "max_tokens": 100, "stream": True}
    lines = []
    async with (
        httpx.AsyncClient(timeout=LIMIT_S) as client,
        client.stream("POST", f"{process.url}/v1/completions", json=body) as response,
    ):
        async for line in response.aiter_lines():
            if not lines:
                process.child.send_signal(signal.SIGTERM)
            lines.append(line)
    assert [line for line in lines if line][-1] == "data: [DONE]"
    assert await process.ended() == 0
    await worker.close()


async def test_it_listens_on_loopback_only(run_dir: Path, started: list[Process]) -> None:
    worker = await with_worker(run_dir)
    process = Process(run_dir)
    started.append(process)
    await process.ready()
    listening = [each.laddr for each in psutil.Process(process.child.pid).net_connections() if each.status == "LISTEN"]
    assert listening == [("127.0.0.1", int(process.port))]
    await worker.close()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"PHASELINE_MAX_IN_FLIGHT": "0"}, "setting max_in_flight: Input should be greater than or equal to 1"),
        ({"PHASELINE_NO_SUCH_THING": "1"}, "unknown setting PHASELINE_NO_SUCH_THING"),
        ({"PHASELINE_HOST": "0.0.0.0"}, "setting host"),
    ],
)
async def test_a_setting_that_cannot_be_used_is_one_line(
    run_dir: Path, started: list[Process], settings: dict[str, str], says: str
) -> None:
    process = Process(run_dir, **settings)
    started.append(process)
    assert await process.ended() == 2
    words = process.last_words().strip()
    assert says in words
    assert "\n" not in words


async def test_a_port_in_use_is_one_line_that_names_it(run_dir: Path, started: list[Process]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        process = Process(run_dir, PHASELINE_GATEWAY_PORT=port)
        started.append(process)
        assert await process.ended() == 2
    words = process.last_words().strip()
    assert f"127.0.0.1:{port} cannot be used: Address already in use" in words
    assert "\n" not in words
