"""A gateway in front of other people's engines: fake servers, the bridge before them, and a plane that gives roles."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1] / "gateway"))

from fake_servers import MODEL, FakeServer
from gateway_builders import SPLIT_ALWAYS, load_text, serving, until

from control.bridge.bridge import Bridge
from control.fleets.attached.bridge_file import bridge_path
from control.fleets.attached.bridged import BridgedWorkers
from control.fleets.attached.targets import RosterTargets, make_target
from control.fleets.attached.types import Attachment
from control.fleets.base import FleetStep, StepOutcome
from control.gateway.admission import Admission
from control.gateway.app import Gateway, GatewayLimits, running
from control.gateway.fleet import Fleet
from control.gateway.gatekeeper import AdmissionRules
from control.gateway.records import Origin, RecordLog
from control.types.requests import RequestRecord, Slo
from control.types.routing import RoutingPolicy, RoutingTable
from control.types.workers import Role, WorkerState
from engine.text import ModelText
from engine.wire import Hello

FLEET = "prod"


@dataclass(slots=True)
class Prod:
    """All of it. `give` is what the plane does; `complete` is a client."""

    servers: dict[str, FakeServer]
    bridge: Bridge
    bridged: BridgedWorkers
    gateway: Gateway
    text: ModelText
    client: httpx.AsyncClient
    registry: RosterTargets
    policy: RoutingPolicy
    _version: int = field(default=0)

    async def give(self, verb: str, worker_id: str, role: Role = Role.UNASSIGNED) -> StepOutcome:
        step = FleetStep(verb=verb, worker_id=worker_id, role=role, fence=1, reason="a test")
        return await self.bridged.order(step)

    async def became(self, worker_id: str, role: Role, state: WorkerState = WorkerState.READY) -> None:
        """Seen by the plane and by the gateway."""

        def holds() -> bool:
            route, link = self.bridged.route(worker_id), self.gateway.fleet.links.get(worker_id)
            here = route is not None and (route.role, route.state) == (role, state)
            return here and link is not None and (link.role, link.state) == (role, state)

        await until(holds)

    def retable(self) -> None:
        self._version += 1
        rows = self.bridged.routes()
        table = RoutingTable(version=self._version, fleet_id=FLEET, model_id=MODEL, fence=1, num_devices=len(rows),
                             policy=self.policy, workers=rows)  # fmt: skip
        self.gateway.fleet.take_table(table)

    async def complete(self, prompt: str, max_tokens: int = 12, **fields: Any) -> httpx.Response:
        body = {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, **fields}
        return await self.client.post("/v1/completions", json=body)

    @property
    def records(self) -> list[RequestRecord]:
        return self.gateway.records.batch_from(0)[1]


@contextlib.asynccontextmanager
async def prod(
    folder: Path, roles: Mapping[str, Role], policy: RoutingPolicy = SPLIT_ALWAYS, **servers: FakeServer
) -> AsyncIterator[Prod]:
    """Engines by name, in these roles, behind one gateway."""
    text = load_text(folder / "model")
    for server in servers.values():
        await server.start()
    kind = next(iter(servers.values())).kind
    attachment = Attachment(name=FLEET, kind=kind, simulated=True)
    registry = RosterTargets()
    registry.listed = tuple(make_target(each.url, roles[name].value, name) for name, each in servers.items())
    bridge = Bridge(attachment, registry, token="secret", path=bridge_path(folder, FLEET), encode=text.encode)
    bridged = BridgedWorkers(folder, FLEET, "secret", simulated=True)
    fleet = Fleet(Hello("gw-test", "gateway", "secret"))
    gateway = Gateway(
        fleet=fleet,
        admission=Admission(fleet, AdmissionRules(max_in_flight=64)),
        records=RecordLog(),
        origin=Origin(gateway_id="gw-test", fleet_id=FLEET, slo=Slo()),
        limits=GatewayLimits(
            default_max_tokens=16, max_body_bytes=100_000, first_token_timeout_s=60.0, token_gap_timeout_s=60.0
        ),
    )
    gateway.text = text
    serve = asyncio.create_task(bridge.run())
    async with running(gateway), serving(gateway) as url:
        client = httpx.AsyncClient(base_url=url, timeout=30.0)
        place = Prod(dict(servers), bridge, bridged, gateway, text, client, registry, policy)
        try:
            await _placed(place, roles)
            yield place
        finally:
            await client.aclose()
            await bridged.close()
            serve.cancel()
            await asyncio.gather(serve, return_exceptions=True)
            for server in servers.values():
                await server.die()


async def _placed(place: Prod, roles: Mapping[str, Role]) -> None:
    """Each engine has the role that it was attached with."""
    await followed(place, lambda: len(place.bridged.routes()) == len(roles))
    for name, role in roles.items():
        assert (await place.give("place", name, role)).accepted
    place.retable()
    for name, role in roles.items():
        await place.became(name, role)


async def followed(place: Prod, condition: Callable[[], bool]) -> None:
    """The plane looks for the bridge at each tick."""

    def looked() -> bool:
        place.bridged.follow()
        return condition()

    await until(looked)
