"""What a worker says right behind its Welcome is newer than that, for the gateway's link and for the plane's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from control.fleets.worker_link import WorkerLink as PlaneLink
from control.gateway.prefix_index import PrefixIndex
from control.gateway.workers import WorkerLink as GatewayLink
from control.types.routing import WorkerRoute
from engine.connection import Connection, bound_port, listen
from engine.types import KvLayout, Load, Role, WorkerState
from engine.wire import Hello, Status, Welcome, encode

TOKEN = "fleet-secret"
LAYOUT = KvLayout(
    model_id="m", weights_digest="d", dtype="seeded", num_layers=1, block_tokens=4, num_kv_heads=1, head_dim=1
)
WELCOME = Welcome("w0", 1, Role.UNASSIGNED, WorkerState.UNASSIGNED, "m", LAYOUT, 128, True, Load())
PLACED = Status("w0", 1, Role.PREFILL, WorkerState.READY, 1, "", Load())


@contextlib.asynccontextmanager
async def placed_in_the_same_moment() -> AsyncIterator[str]:
    """The address of a worker whose Welcome and next Status arrive in one piece."""
    peers: list[Connection] = []

    def on_peer(connection: Connection, hello: Hello) -> None:
        peers.append(connection)
        connection.send_frame(encode(WELCOME) + encode(PLACED))

    server = await listen("127.0.0.1", 0, TOKEN, on_peer)
    try:
        yield f"127.0.0.1:{bound_port(server)}"
    finally:
        server.close()
        for each in peers:
            each.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_the_gateway_uses_a_worker_that_was_placed_while_it_connected() -> None:
    async with placed_in_the_same_moment() as address:
        row = WorkerRoute(worker_id="w0", epoch=1, address=address, role=Role.UNASSIGNED, state=WorkerState.UNASSIGNED)
        link = GatewayLink(row, 0, PrefixIndex(), lambda: None)
        task = asyncio.create_task(link.keep_connected(Hello("gw-1", "gateway", TOKEN)))
        await until(lambda: link.is_connected)
        await asyncio.sleep(0)
        assert (link.role, link.is_ready) == (Role.PREFILL, True)
        task.cancel()
        link.close("the test is over")


async def test_the_plane_sees_a_worker_that_was_placed_while_it_connected() -> None:
    async with placed_in_the_same_moment() as address:
        link = PlaneLink("w0", TOKEN, on_change=lambda: None, on_lost=lambda _worker, _reason: None)
        link.aim(address, 1)
        await until(lambda: link.is_connected)
        await asyncio.sleep(0)
        assert link.route is not None
        assert (link.route.role, link.route.state) == (Role.PREFILL, WorkerState.READY)
        await link.close()
