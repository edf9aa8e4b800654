"""The paced workers of one site on the running loop, and the fleet adapter that reads their meter pages."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Final

from _mixes import BLOCK_TOKENS, DEVICE, MODEL, Mix, Site
from control.fleets.base import FleetStep, Observation, StepOutcome
from control.types.fleet import Capability
from control.types.routing import RoutingPolicy, WorkerRoute
from control.types.workers import Role, WorkerState
from engine.connection import Connection, connect
from engine.errors import EngineError
from engine.meter_reader import MeterReader
from engine.paced import PacedWorker
from engine.readings import DeviceInfo
from engine.wire import Hello, Order
from engine.worker_config import WorkerConfig

FLEET: Final = "bench"
VOCABULARY: Final = 100_000
POLICY = RoutingPolicy(min_fleet_devices=2, min_remote_prefill_tokens=0, max_local_output_tokens=0)
#: Nothing else refers to them, and a connection that is collected is closed.
_kept: list[tuple[PacedWorker, Connection]] = []


def body_of(mix: Mix, number: int, prompt_tokens: int) -> bytes:
    """A streamed completion of a prompt that no other request has."""
    rng = random.Random(f"{mix.number}-{number}")
    prompt = [rng.randrange(1, VOCABULARY) for _ in range(prompt_tokens)]
    fields = {"model": MODEL, "prompt": prompt, "max_tokens": mix.output_tokens, "ignore_eos": True, "stream": True}
    return json.dumps(fields).encode()


async def place(site: Site, shm_dir: Path, token: str, executor: Executor) -> tuple[WorkerRoute, ...]:
    """Start the site's workers in their roles; they live as long as the process."""
    roles = [Role.PREFILL] * site.num_prefill + [Role.DECODE] * site.num_decode
    rows = []
    for index, role in enumerate(roles):
        worker = PacedWorker(_config(site, f"w{index}", shm_dir, token), executor, site.cost)
        await worker.start()
        plane = await connect(worker.address, Hello("bench", "plane", token))
        plane.send(Order(f"place-{index}", 1, "place", role))
        _kept.append((worker, plane))
        rows.append(_row(f"w{index}", worker.address, role))
    return tuple(rows)


def _config(site: Site, worker_id: str, folder: Path, token: str) -> WorkerConfig:
    device = DeviceInfo(
        name=DEVICE,
        kind="paced",
        uuid=worker_id,
        peak_flops=site.cost.peak_flops,
        peak_bytes_per_s=site.cost.peak_bytes_per_s,
        peak_source="assumed",
    )
    return WorkerConfig(
        worker_id=worker_id,
        epoch=1,
        kind="paced",
        shm_dir=str(folder),
        fleet_token=token,
        model_id=MODEL,
        paced_device=DEVICE,
        paced_model=MODEL,
        device=device,
        kv_bytes=site.kv_bytes,
        block_tokens=BLOCK_TOKENS,
        max_batch=site.max_batch,
        prefill_chunk_tokens=2048,
        max_queue=1000,
    )


def _row(worker_id: str, address: str, role: Role) -> WorkerRoute:
    return WorkerRoute(
        worker_id=worker_id, epoch=1, address=address, role=role, state=WorkerState.READY, simulated=True
    )


class PagesFleet:
    """A fleet that is there already: its meter pages are read, and nothing is ordered."""

    kind = "paced"
    simulated = True
    fleet_id = FLEET
    model_id = MODEL
    capabilities = frozenset(
        {Capability.OBSERVE, Capability.ROUTE, Capability.FLIP}
    )  # a plane routes what it can order

    def __init__(self, rows: tuple[WorkerRoute, ...], shm_dir: Path) -> None:
        self._rows = rows
        self._readers = {row.worker_id: MeterReader(shm_dir / f"{row.worker_id}.meter") for row in rows}
        self._cursors = dict.fromkeys(self._readers, 0)

    async def prepare(self) -> None:
        """Nothing to load."""

    async def start(self, on_change: Callable[[], None]) -> None:
        """The workers run."""

    async def observe(self, now_unix_s: float) -> Observation:
        readings = []
        for worker_id, reader in self._readers.items():
            with contextlib.suppress(EngineError):
                readings.append(reader.read(self._cursors[worker_id]))
                self._cursors[worker_id] = readings[-1].next_cursor
        return Observation(at_unix_s=now_unix_s, readings=tuple(readings))

    async def apply(self, step: FleetStep) -> StepOutcome:
        return StepOutcome(accepted=False, detail="this fleet takes no orders", retry_helps=False)

    def routes(self) -> tuple[WorkerRoute, ...]:
        return self._rows

    async def close(self) -> None:
        """Nothing to let go of."""

    async def stop(self) -> None:
        """Whoever started the workers ends them."""
