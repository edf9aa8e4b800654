"""A gateway over HTTP in front of worker processes with a tiny model, as the tests of this folder use it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx

sys.path.append(str(Path(__file__).resolve().parents[1] / "engine"))
sys.path.append(str(Path(__file__).resolve().parents[1] / "control" / "gateway"))

from gateway_builders import serving, until
from worker_client import LIMIT_S, TOKEN, WorkerClient
from worker_process import WorkerProcess

from control.gateway.admission import Admission
from control.gateway.app import Gateway, GatewayLimits
from control.gateway.app import running as tasks_of
from control.gateway.fleet import Fleet
from control.gateway.gatekeeper import AdmissionRules
from control.gateway.records import Origin, RecordLog
from control.types.requests import Slo
from control.types.routing import RoutingPolicy, RoutingTable, WorkerRoute
from engine.errors import ConnectionLost
from engine.text import Text
from engine.types import Load, Role, WorkerState
from engine.wire import Hello

SPLIT = RoutingPolicy(min_fleet_devices=0, min_remote_prefill_tokens=0, max_local_output_tokens=0)
LOCAL = RoutingPolicy(min_fleet_devices=100)
NAMES = ("w-0", "w-1", "w-2")


class Front:
    """A gateway over HTTP, its workers' order channels, and the table it holds."""

    def __init__(self, gateway: Gateway, url: str, model: str, addresses: Sequence[str]) -> None:
        self.gateway = gateway
        self.model = model
        self.addresses = addresses
        self.client = httpx.AsyncClient(base_url=url, timeout=LIMIT_S)
        self.orders: list[WorkerClient] = []
        self._version = 0

    def take(self, policy: RoutingPolicy) -> None:
        self._version += 1
        rows = tuple(
            WorkerRoute(worker_id=name, epoch=1, address=address, role=Role.UNASSIGNED, state=WorkerState.UNASSIGNED)
            for name, address in zip(NAMES, self.addresses, strict=False)
        )
        table = RoutingTable(
            version=self._version,
            fleet_id="t",
            model_id=self.model,
            fence=1,
            num_devices=3,
            policy=policy,
            workers=rows,
        )
        assert self.gateway.fleet.take_table(table)

    async def place(self, *roles: Role) -> None:
        for address, role in zip(self.addresses, roles, strict=True):
            self.orders.append(await open_when_loaded(address))
            await self.orders[-1].place(role)
        await until(lambda: all(link.is_ready for link in self.gateway.fleet.links.values()), LIMIT_S)

    async def ask(self, number: int, *, temperature: float = 0.0, max_tokens: int = 24, stream: bool = False) -> str:
        prompt = [3 + (number * 7 + at * at) % 200 for at in range(20 + 17 * number)]
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": number,
            "ignore_eos": True,
            "stream": stream,
        }
        response = await self.client.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text
        if stream:
            assert response.text.endswith("data: [DONE]\n\n"), response.text[-300:]
            return response.text
        return str(response.json()["choices"][0]["text"])


async def open_when_loaded(address: str) -> WorkerClient:
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                return await WorkerClient.open(address, peer_kind="plane")
            except ConnectionLost:
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def front(text: Text, model: str, processes: Sequence[WorkerProcess]) -> AsyncIterator[Front]:
    fleet = Fleet(Hello("gw", "gateway", TOKEN))
    gateway = Gateway(
        fleet=fleet,
        admission=Admission(fleet, AdmissionRules(max_in_flight=64)),
        records=RecordLog(),
        origin=Origin(gateway_id="gw", fleet_id="t", slo=Slo()),
        limits=GatewayLimits(
            default_max_tokens=16, max_body_bytes=10**6, first_token_timeout_s=LIMIT_S, token_gap_timeout_s=LIMIT_S
        ),
    )
    gateway.text = text
    addresses = [address for process in processes for address in process.addresses]
    async with tasks_of(gateway), serving(gateway) as url:
        place = Front(gateway, url, model, addresses)
        place.take(SPLIT)
        try:
            yield place
        finally:
            await place.client.aclose()
            for client in place.orders:
                client.close()


def rules(place: Front) -> set[str]:
    return {record.rule for record in place.gateway.records.batch_from(0)[1]}


def holds_nothing(load: Load) -> bool:
    return not (load.num_running or load.num_leased or load.kv_blocks_reserved or load.kv_blocks_held)
