"""Paced workers behind one gateway and nothing else: three processes with the client, for measurements on few cores.

    with paced_fleet(shape, settings) as fleet: ... fleet.url, fleet.gateway

The workers are the product's own (scheduler, blocks, sockets, handoff; step times modelled), in one process as
`python bench/_paced_fleet.py FILE`; the gateway is `control.gateway.main` with a routing table on disk and no plane.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import uvloop

from control.fleets.fleet_token import fleet_token
from control.gateway.plane_link import save_table
from control.types.routing import RoutingPolicy, RoutingTable, WorkerRoute
from engine.connection import connect
from engine.paced import PacedWorker
from engine.types import Role, WorkerState
from engine.wire import Hello, Order
from engine.worker_config import WorkerConfig

ROOT = Path(__file__).resolve().parents[1]
MODEL = "llama-3.1-70b-fp8"
DEVICE = "h100-sxm-80gb"
READY_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The workers of one fleet."""

    num_prefill: int = 2
    num_decode: int = 2
    max_batch: int = 24
    prefill_chunk_tokens: int = 2048
    kv_bytes: int = 16 * 2**30
    max_queue: int = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class PacedFleet:
    url: str
    gateway: psutil.Process
    run_dir: Path


@contextlib.contextmanager
def paced_fleet(shape: Shape, **settings: Any) -> Iterator[PacedFleet]:
    """Everything is ended and removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="phaseline-paced-") as folder, contextlib.ExitStack() as stack:
        run_dir = Path(folder)
        shm_dir = Path(tempfile.mkdtemp(prefix="phaseline-paced-", dir="/dev/shm"))
        stack.callback(shutil.rmtree, shm_dir, ignore_errors=True)
        plan = run_dir / "fleet.json"
        plan.write_text(json.dumps(asdict(shape) | {"token": fleet_token(run_dir), "shm_dir": str(shm_dir)}))
        rows = start_workers(stack, plan)
        table = RoutingTable(
            version=1,
            fleet_id="bench",
            model_id=MODEL,
            fence=1,
            num_devices=len(rows),
            policy=RoutingPolicy(min_fleet_devices=2, min_remote_prefill_tokens=0, max_local_output_tokens=0),
            workers=rows,
            expected_output_tokens=100,
        )
        save_table(run_dir / "gateway" / "table.json", table)
        port = free_port()
        values = {"run_dir": run_dir, "fleet_id": "bench", "worker_kind": "paced", "paced_model": MODEL}
        values |= {"gateway_port": port, "api_port": free_port(), **settings}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PHASELINE_")}
        environment |= {f"PHASELINE_{name.upper()}": str(value) for name, value in values.items()}
        log = stack.enter_context((run_dir / "gateway.log").open("w"))
        gateway = start(stack, [sys.executable, "-m", "control.gateway.main"], env=environment, stderr=log)
        url = f"http://127.0.0.1:{port}"
        wait_ready(url)
        yield PacedFleet(url=url, gateway=psutil.Process(gateway.pid), run_dir=run_dir)


def start(stack: contextlib.ExitStack, command: list[str], **options: Any) -> subprocess.Popen[str]:
    child = subprocess.Popen(command, text=True, cwd=ROOT, **options)
    stack.callback(end, child)
    return child


def end(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(5)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def start_workers(stack: contextlib.ExitStack, plan: Path) -> tuple[WorkerRoute, ...]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    child = start(stack, [sys.executable, __file__, str(plan)], stdout=subprocess.PIPE, env=environment)
    assert child.stdout is not None
    said = json.loads(child.stdout.readline())
    return tuple(
        WorkerRoute(worker_id=name, epoch=1, address=address, role=Role(role), state=WorkerState.READY, simulated=True)
        for name, address, role in said
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_ready(url: str) -> None:
    deadline_s = time.monotonic() + READY_LIMIT_S
    while time.monotonic() < deadline_s:
        with contextlib.suppress(OSError, urllib.error.URLError), urllib.request.urlopen(f"{url}/readyz", timeout=2):
            return
        time.sleep(0.1)
    raise SystemExit(f"the gateway was not ready within {READY_LIMIT_S:g} s")


# --- the workers' process ----------------------------------------------------------------------------------------


async def serve(fields: dict[str, Any]) -> None:
    token, executor = fields["token"], ThreadPoolExecutor(4)
    roles = [Role.PREFILL] * fields["num_prefill"] + [Role.DECODE] * fields["num_decode"]
    shape = {name: fields[name] for name in ("max_batch", "prefill_chunk_tokens", "kv_bytes", "max_queue")}
    said = []
    for index, role in enumerate(roles):
        config = WorkerConfig(
            worker_id=f"w{index}",
            epoch=1,
            kind="paced",
            shm_dir=fields["shm_dir"],
            fleet_token=token,
            model_id=MODEL,
            paced_device=DEVICE,
            paced_model=MODEL,
            **shape,
        )
        worker = PacedWorker(config, executor)
        await worker.start()
        plane = await connect(worker.address, Hello("bench", "plane", token))
        plane.send(Order(f"place-{index}", 1, "place", role))
        said.append((config.worker_id, worker.address, role.value))
    print(json.dumps(said), flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()


if __name__ == "__main__":
    uvloop.run(serve(json.loads(Path(sys.argv[1]).read_text())))
