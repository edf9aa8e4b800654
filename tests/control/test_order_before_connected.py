"""An order that a plane gives while it still connects to the worker waits for the connection."""

from __future__ import annotations

import asyncio

from control.fleets.base import FleetStep
from control.fleets.worker_link import WorkerLink
from engine.connection import Connection, bound_port, listen
from engine.types import KvLayout, Load, Role, WorkerState
from engine.wire import Hello, Message, Order, OrderResult, Welcome

TOKEN = "fleet-secret"
LAYOUT = KvLayout(
    model_id="m", weights_digest="d", dtype="seeded", num_layers=1, block_tokens=4, num_kv_heads=1, head_dim=1
)
WELCOME = Welcome("w0", 1, Role.PREFILL, WorkerState.READY, "m", LAYOUT, 128, True, Load())
STEP = FleetStep(verb="flip", worker_id="w0", role=Role.DECODE, fence=2, reason="desired version 2")


def new_link() -> WorkerLink:
    return WorkerLink("w0", TOKEN, on_change=lambda: None, on_lost=lambda _worker, _reason: None)


async def test_an_order_given_before_the_connection_is_made_reaches_the_worker() -> None:
    def on_message(connection: Connection, message: Message) -> None:
        if isinstance(message, Order):
            connection.send(OrderResult(message.order_id, True, message.role, WorkerState.READY, ""))

    def on_peer(connection: Connection, _hello: Hello) -> None:
        connection.on_message = on_message
        connection.send(WELCOME)

    server = await listen("127.0.0.1", 0, TOKEN, on_peer)
    link = new_link()
    link.aim(f"127.0.0.1:{bound_port(server)}", 1)
    assert not link.is_connected
    outcome = await link.order(STEP)
    assert (outcome.accepted, outcome.detail) == (True, "")
    await link.close()
    server.close()


async def test_an_order_to_a_worker_that_cannot_be_reached_says_so() -> None:
    link = new_link()
    assert not (await link.order(STEP)).accepted
    link.aim("127.0.0.1:1", 1)
    outcome = await link.order(STEP, timeout_s=0.05)
    assert not outcome.accepted
    assert "w0 is not connected" in outcome.detail
    await asyncio.wait_for(link.close(), 5)
