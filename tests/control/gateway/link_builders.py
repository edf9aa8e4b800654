"""A gateway's link without HTTP, and the plane's side of its socket, which sends what a test tells it to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve

from control.gateway import link
from control.gateway.admission import Admission
from control.gateway.fleet import Fleet
from control.gateway.gatekeeper import AdmissionRules
from control.gateway.plane_link import PlaneAddress, PlaneLink
from control.gateway.records import RecordLog
from control.types.requests import RequestMove, RequestRecord
from engine.wire import Hello


def record(number: int) -> RequestRecord:
    words = ("fleet_id", "model_id", "gateway_id", "api_key_id", "endpoint", "rule", "reason", "prefill_worker")
    times = ("queue_s", "prefill_s", "handoff_s", "ttft_s", "tpot_s", "max_gap_s", "e2e_s", "good")
    counts = ("attempt", "priority", "prompt_tokens", "cached_tokens", "output_tokens", "max_tokens")
    fields: dict[str, Any] = {**dict.fromkeys(words, "x"), **dict.fromkeys(times), **dict.fromkeys(counts, 1)}
    return RequestRecord(
        request_id=f"r{number}",
        simulated=True,
        arrival_unix_s=1.0,
        stream=False,
        decode_worker="d",
        status=200,
        finish_reason="stop",
        error="",
        itl_buckets={3: 4},
        moves=(RequestMove(kind="migration", from_worker="a", to_worker="b", at_s=1.0, num_bytes=2**40),),
        **fields,
    )


class FakePlane:
    """The plane's side of the socket: keeps what it gets, sends what a test tells it to."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.headers: list[str] = []
        self.sockets: list[ServerConnection] = []
        self._server: Server | None = None

    async def start(self, port: int = 0) -> int:
        self._server = await serve(self._serve, "127.0.0.1", port)
        return int(next(iter(self._server.sockets)).getsockname()[1])

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        self.headers.append(socket.request.headers["Authorization"])
        self.sockets.append(socket)
        async for payload in socket:
            assert isinstance(payload, bytes)
            self.seen.append(link.decode(payload))

    async def send(self, message: link.LinkMessage) -> None:
        await self.sockets[-1].send(link.encode(message))

    def of(self, kind: type) -> list[Any]:
        return [message for message in self.seen if isinstance(message, kind)]


class Gateway:
    """What a link joins, without HTTP."""

    def __init__(self, run_dir: Path, port: int) -> None:
        self.fleet = Fleet(Hello("gw", "gateway", "secret"))
        self.records = RecordLog()
        self.admission = Admission(self.fleet, AdmissionRules(max_in_flight=8))
        self.link = PlaneLink(
            plane=PlaneAddress(urls=(f"ws://127.0.0.1:{port}/api/v1/gateways/connect",), run_dir=run_dir),
            hello=link.GatewayHello("gw", "127.0.0.1:1", "0", 1.0),
            fleet=self.fleet,
            records=self.records,
            admission=self.admission,
            accepts=lambda table: table.fleet_id == "test",
        )


@contextlib.asynccontextmanager
async def linked(run_dir: Path, port: int) -> AsyncIterator[Gateway]:
    gateway = Gateway(run_dir, port)
    task = asyncio.create_task(gateway.link.run())
    try:
        yield gateway
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
