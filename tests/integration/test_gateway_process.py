"""The gateway as a process: it serves without a plane, ends its open streams on SIGTERM, and fails in one line."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
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
from control.listener import LISTEN_FD, ask_gateway, bind_listener, reclaim_listener
from control.types.routing import RoutingTable, WorkerRoute
from control.types.workers import Role, WorkerState

pytestmark = pytest.mark.integration
LIMIT_S = 60.0


class Process:
    """`python -m control.gateway.main` in a run folder of its own; ended by its id."""

    def __init__(self, run_dir: Path, listener: socket.socket | None = None, **settings: str) -> None:
        """`listener`: the socket that it inherits, as from a supervisor."""
        own_port = str(listener.getsockname()[1]) if listener is not None else free_port()
        self.port = settings.pop("PHASELINE_GATEWAY_PORT", "") or own_port
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
        inherits = () if listener is None else (listener.fileno(),)
        environment |= {LISTEN_FD: str(inherits[0])} if inherits else {}
        command = [sys.executable, "-m", "control.gateway.main"]
        self.log = open(run_dir / f"gateway-{self.port}-{time.monotonic_ns()}.log", "w+")  # noqa: SIM115  read at its end
        self.child = subprocess.Popen(command, env=environment, stderr=self.log, pass_fds=inherits)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def ready(self) -> None:
        async with asyncio.timeout(LIMIT_S), httpx.AsyncClient() as client:
            while True:
                assert self.child.poll() is None, self.last_words()
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
        self.log.seek(0)
        return self.log.read()


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
        process.log.close()


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


# --- several gateways, one address ------------------------------------------------------------------------------------


async def own_ready(process: Process) -> None:
    """This very gateway is ready; the shared address may be answered by another one."""
    async with asyncio.timeout(LIMIT_S):
        while (found := await asyncio.to_thread(ask_gateway, process.child.pid)) is None or found[0].problem:
            assert process.child.poll() is None, process.last_words()
            await asyncio.sleep(0.05)
        found[1].close()


class Clients:
    """Keep sending, each with connections of its own, until told to stop; `failures` keeps all that went wrong."""

    def __init__(self, url: str, *, keeps_alive: bool) -> None:
        self.num_served = 0
        self.failures: list[str] = []
        self._url = url
        self._limits = httpx.Limits(max_keepalive_connections=1 if keeps_alive else 0)
        self._ends = asyncio.Event()
        self._tasks = [asyncio.create_task(self._run()) for _ in range(4)]

    async def _run(self) -> None:
        body = {"model": "null", "prompt": "Paris", "max_tokens": 4}
        async with httpx.AsyncClient(timeout=LIMIT_S, limits=self._limits) as client:
            while not self._ends.is_set():
                try:
                    answer = await client.post(f"{self._url}/v1/completions", json=body)
                    if answer.status_code == 200:
                        self.num_served += 1
                    else:
                        self.failures.append(answer.text)
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))

    async def served(self, more: int) -> None:
        goal = self.num_served + more
        await until(lambda: self.num_served >= goal or bool(self.failures), LIMIT_S)

    async def end(self) -> None:
        self._ends.set()
        await asyncio.gather(*self._tasks)


@pytest.mark.parametrize("keeps_alive", [False, True])
async def test_gateways_replace_each_other_on_one_address_and_no_request_fails(
    run_dir: Path, started: list[Process], keeps_alive: bool
) -> None:
    worker = await with_worker(run_dir)
    with bind_listener("127.0.0.1", 0) as listener:
        started.append(Process(run_dir, listener))
        await own_ready(started[-1])
        clients = Clients(started[-1].url, keeps_alive=keeps_alive)
        for _ in range(3):
            await clients.served(50)
            started.append(Process(run_dir, listener))
            await own_ready(started[-1])
            started[-2].child.send_signal(signal.SIGTERM)
            assert await started[-2].ended() == 0
        await clients.served(50)
        await clients.end()
    assert clients.failures == []
    await worker.close()


async def test_connections_that_wait_while_no_gateway_lives_are_served_by_the_next_one(
    run_dir: Path, started: list[Process]
) -> None:
    worker = await with_worker(run_dir)
    with bind_listener("127.0.0.1", 0) as listener:
        started.append(Process(run_dir, listener))
        await own_ready(started[-1])
        started[-1].child.kill()
        await started[-1].ended()
        clients = Clients(started[-1].url, keeps_alive=False)
        started.append(Process(run_dir, listener))
        await clients.served(20)
        await clients.end()
    assert clients.failures == []
    await worker.close()


async def test_a_socket_that_nobody_holds_any_more_comes_back_from_a_living_gateway(
    run_dir: Path, started: list[Process]
) -> None:
    worker = await with_worker(run_dir)
    with bind_listener("127.0.0.1", 0) as listener:
        started.append(Process(run_dir, listener))
    await own_ready(started[-1])
    clients = Clients(started[-1].url, keeps_alive=False)
    found = await asyncio.to_thread(reclaim_listener, started[-1].child.pid, int(started[-1].port))
    assert found is not None
    with found:
        started.append(Process(run_dir, found))
        await own_ready(started[-1])
        started[-2].child.send_signal(signal.SIGTERM)
        assert await started[-2].ended() == 0
        await clients.served(20)
        await clients.end()
    assert clients.failures == []
    await worker.close()


async def ask_once(port: str, body: bytes) -> tuple[int, bool]:
    """One request on its own connection: status (0: refused by the kernel), and whether a stream came whole."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
    except OSError:
        return 0, True
    try:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: t\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        answer = await reader.read(-1)
        status = int(answer.split(b" ", 2)[1]) if answer else 0
        return status, status != 200 or b"data: [DONE]" in answer
    except ConnectionError:  # it was closed before it had sent all
        return 0, True
    finally:
        writer.close()


async def test_a_flood_of_thousands_of_connections_costs_a_bounded_amount_of_memory(
    run_dir: Path, started: list[Process]
) -> None:
    """Requests beyond the bounds get 429 or 503, who is admitted gets all, and the resident set does not follow."""
    worker = await with_worker(run_dir, step_s=0.01)
    worker.keeps_seen = False
    process = Process(run_dir, PHASELINE_MAX_IN_FLIGHT="64", PHASELINE_MAX_CONNECTIONS="1000")
    started.append(process)
    await process.ready()
    body = json.dumps({"model": "null", "prompt": "x" * 4000, "max_tokens": 20, "stream": True}).encode()
    idle = [await asyncio.open_connection("127.0.0.1", int(process.port)) for _ in range(200)]
    for _, writer in idle:
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 1000000\r\n\r\n" + bytes(100_000))
    resident, seen = [], set[int]()
    for _ in range(4):
        answers = await asyncio.gather(*[ask_once(process.port, body) for _ in range(2000)])
        seen |= {status for status, _ in answers}
        assert all(is_whole for _, is_whole in answers), "a stream that was admitted was dropped"
        resident.append(psutil.Process(process.child.pid).memory_info().rss / 2**20)
    assert 200 in seen
    assert seen <= {0, 200, 429, 503}
    assert max(resident) - resident[0] < 64, f"resident MiB after each 2000 requests: {resident}"
    for _, writer in idle:
        writer.close()
    await until(lambda: not worker._running, LIMIT_S)
    assert (await ask_once(process.port, body))[0] == 200
    await worker.close()
