"""A mix on real processes: the workers of all its variants in one, a gateway for each, and a plane for the first.

    with running(mix) as sites: sites.urls["prefill"] ..; sites.bottleneck()

All variants run at the same time, so that whatever disturbs the machine disturbs them alike. Workers are paced
(simulated): the product's own scheduler, blocks, sockets and handoffs, with modelled step times. The plane is the
product's, on a fleet that only reads the workers' meter pages; its verdict is asked for through its API.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from _mixes import MODEL, Mix, Site, variants
from _paced_pool import FLEET, POLICY, PagesFleet, place
from control.adoption import adopt
from control.api.app import create_app
from control.api.context import ApiContext
from control.auth import open_auth, read_token
from control.client import PhaselineClient
from control.fleets.fleet_token import fleet_token
from control.gateway import main as gateway_main
from control.gateway.plane_link import save_table
from control.history.store import History
from control.lease import Holder, Lease
from control.settings import Settings
from control.types.bottleneck import Bottleneck
from control.types.routing import RoutingTable, WorkerRoute

READY_LIMIT_S = 60.0
#: A gateway that is given a share of a core has it in each of these, as CPU quotas do by default.
PERIOD_S = 0.1
_context = multiprocessing.get_context("forkserver")
#: A gateway names its requests by a number that it draws when it is imported: no two may be copies of one process.
_fresh = multiprocessing.get_context("spawn")
_context.set_forkserver_preload(["_mix_site"])


@dataclass(frozen=True, slots=True)
class Sites:
    """Addresses of each variant's gateways, and the plane's client."""

    urls: dict[str, list[str]]
    plane: PhaselineClient

    def bottleneck(self) -> Bottleneck:
        return self.plane.bottleneck()


@contextlib.contextmanager
def running(mix: Mix) -> Iterator[Sites]:
    """Everything is ended and removed afterwards."""
    with contextlib.ExitStack() as stack:
        run_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="phaseline-mix-")))
        shm_dir = Path(tempfile.mkdtemp(prefix="phaseline-mix-", dir="/dev/shm"))
        stack.callback(shutil.rmtree, shm_dir, ignore_errors=True)
        found = variants(mix.site)
        rows = _start(stack, _serve_workers, run_dir, found, shm_dir)
        plane_port = free_port()
        _start(stack, _serve_plane, run_dir / "base", mix.site, shm_dir / "base", rows["as it is"], plane_port)
        urls = {
            name: _start_gateways(stack, run_dir, name, site, rows[name], plane_port if name == "as it is" else None)
            for name, site in found.items()
        }
        yield Sites(
            urls, PhaselineClient((f"http://127.0.0.1:{plane_port}",), read_token(run_dir / "base", "operator"))
        )


def _start(stack: contextlib.ExitStack, target: Callable[..., None], *arguments: Any) -> Any:
    """Start a process that says something when it is ready; what it said."""
    context = _fresh if target is _serve_gateway else _context
    ours, theirs = context.Pipe()
    child = context.Process(target=target, args=(theirs, *arguments), daemon=True)
    child.start()
    stack.callback(_end, child)
    if not ours.poll(READY_LIMIT_S):
        raise SystemExit(f"{target.__name__} was not ready within {READY_LIMIT_S:g} s")
    return ours.recv()


def _end(child: BaseProcess) -> None:
    child.kill()
    child.join()


def _folder(run_dir: Path, name: str) -> Path:
    return run_dir / ("base" if name == "as it is" else name)


# --- workers -------------------------------------------------------------------------------------------------------


def _serve_workers(pipe: Pipe, run_dir: Path, sites: dict[str, Site], shm_dir: Path) -> None:
    uvloop.run(_workers(pipe, run_dir, sites, shm_dir))


async def _workers(pipe: Pipe, run_dir: Path, sites: dict[str, Site], shm_dir: Path) -> None:
    """The workers of all variants, on one event loop."""
    executor = ThreadPoolExecutor(4)
    rows = {
        name: await place(site, _folder(shm_dir, name), fleet_token(_folder(run_dir, name)), executor)
        for name, site in sites.items()
    }
    pipe.send(rows)
    await asyncio.Event().wait()


# --- the plane -----------------------------------------------------------------------------------------------------


def _serve_plane(
    pipe: Pipe, run_dir: Path, site: Site, shm_dir: Path, rows: tuple[WorkerRoute, ...], port: int
) -> None:
    uvloop.run(_plane(pipe, run_dir, site, PagesFleet(rows, shm_dir), port))


async def _plane(pipe: Pipe, run_dir: Path, site: Site, fleet: PagesFleet, port: int) -> None:
    now = time.time()
    settings = Settings(
        run_dir=run_dir,
        fleet_id=FLEET,
        worker_kind="paced",
        paced_model=MODEL,
        num_workers=site.num_prefill + site.num_decode,
        num_prefill=site.num_prefill,
        routing=POLICY,
        api_port=port,
    )
    me = Holder(holder_id="bench", hostname="", machine="", pid=os.getpid(), started_unix_s=now, address="")
    lease = Lease(holder=me, fence=1, taken_unix_s=now, expires_unix_s=now + 3600)
    auth = open_auth(run_dir, now)
    history = History.open(f"sqlite:///{run_dir / 'history.db'}")
    plane = await adopt(fleet, history, settings, lease)
    context = ApiContext(planes={FLEET: plane}, auth=auth, settings=settings, version="bench", started_unix_s=now)
    config = uvicorn.Config(create_app(context), host="127.0.0.1", port=port, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    pipe.send(True)
    await asyncio.gather(plane.run(), serving)


# --- gateways ------------------------------------------------------------------------------------------------------


def _start_gateways(
    stack: contextlib.ExitStack,
    run_dir: Path,
    name: str,
    site: Site,
    rows: tuple[WorkerRoute, ...],
    plane_port: int | None,
) -> list[str]:
    """Their addresses. One without a plane routes by the table on disk."""
    folder, urls = _folder(run_dir, name), []
    if plane_port is None:
        table = RoutingTable(
            version=1,
            fleet_id=FLEET,
            model_id=MODEL,
            fence=1,
            num_devices=len(rows),
            policy=POLICY,
            workers=rows,
            expected_output_tokens=30,
        )
        save_table(folder / "gateway" / "table.json", table)
    for _ in range(site.num_gateways):
        port = free_port()
        settings = {"run_dir": folder, "fleet_id": FLEET, "worker_kind": "paced", "paced_model": MODEL}
        settings |= {"gateway_port": port, "api_port": plane_port or free_port(), "max_in_flight": site.max_in_flight}
        pid = _start(stack, _serve_gateway, settings)
        urls.append(f"http://127.0.0.1:{port}")
        wait_ready(urls[-1])
        if site.cpu_share < 1.0:
            _throttle(pid, site.cpu_share)
    return urls


def _serve_gateway(pipe: Pipe, settings: dict[str, Any]) -> None:
    for name in [each for each in os.environ if each.startswith("PHASELINE_")]:
        del os.environ[name]
    os.environ |= {f"PHASELINE_{name.upper()}": str(value) for name, value in settings.items()}
    with (Path(settings["run_dir"]) / "gateway.log").open("a") as log:
        os.dup2(log.fileno(), 2)
    pipe.send(os.getpid())
    gateway_main.main()


def _throttle(pid: int, share: float) -> None:
    """Give the event loop of a process this share of a core, in each period, however idle the machine is: as a CPU
    quota does. It is a reservation of the deadline class too, so a busy machine takes nothing of it."""
    period_ns = round(PERIOD_S * 1e9)
    budget = ["--sched-runtime", str(round(share * period_ns)), "--sched-period", str(period_ns)]
    command = ["chrt", "--deadline", "--reset-on-fork", *budget, "--pid", "0", str(pid)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"a gateway's CPU cannot be limited (this needs CAP_SYS_NICE): {done.stderr.strip()}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_ready(url: str) -> None:
    deadline_s = time.monotonic() + READY_LIMIT_S
    while time.monotonic() < deadline_s:
        with contextlib.suppress(OSError, urllib.error.URLError), urllib.request.urlopen(f"{url}/readyz", timeout=5):
            return
        time.sleep(0.1)
    raise SystemExit(f"the gateway at {url} was not ready within {READY_LIMIT_S:g} s")
