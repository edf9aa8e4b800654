"""How much of a gateway's CPU time goes into recording, while it serves through null workers and a plane takes all."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from bench.gateway import STREAM_TOKENS, UNARY_TOKENS, body, fronted, many
from control.auth import open_auth
from control.gateway import link
from control.types import Role

SETTLE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingCost:
    """CPU time of the gateway, and of its recording; `num_records`: how many the plane took."""

    load: str
    num_requests: int
    num_records: int
    cpu_s: float
    parts_s: dict[str, float]

    @property
    def share(self) -> float:
        return sum(self.parts_s.values()) / self.cpu_s


@asynccontextmanager
async def sink(port: int) -> AsyncIterator[list[int]]:
    """A plane that only acknowledges; gives the sizes of the batches that it took."""
    taken: list[int] = []

    async def listen(socket: ServerConnection) -> None:
        with suppress(ConnectionClosed):  # the gateway ends before its plane
            async for payload in socket:
                message = link.decode(payload) if isinstance(payload, bytes) else None
                if isinstance(message, link.Records):
                    taken.append(len(message.records))
                    last = message.first_seq + len(message.records) - 1
                    await socket.send(link.encode(link.RecordsAck(up_to_seq=last)))

    async with serve(listen, "127.0.0.1", port, compression=None, max_size=None):
        yield taken


async def recording_costs(model: Path, port: int, num_requests: int) -> list[RecordingCost]:
    """Under short unary requests, and under streams."""
    unary, stream = body(model.name, max_tokens=UNARY_TOKENS), body(model.name, max_tokens=STREAM_TOKENS, stream=True)
    num_streams = max(32, num_requests // 8)
    return [
        await _measure(model, port, "unary, 16 tokens", unary, num_requests, 0.0),
        await _measure(model, port + 10, "streams, 128 tokens", stream, num_streams, 0.01),
    ]


def _with_tokens(run_dir: Path) -> None:
    open_auth(run_dir, time.time())


async def _measure(model: Path, port: int, load: str, payload: bytes, number: int, step_s: float) -> RecordingCost:
    async with (
        sink(port + 1) as taken,
        fronted(port, model, [("null-0", Role.MIXED, step_s)], timed=True, prepare=_with_tokens) as place,
    ):
        await many(port, payload, 32, 8, "empty_pool")
        place.gateway.send_signal(signal.SIGUSR1)
        before = sum(taken)
        await many(port, payload, number, 16, "empty_pool")
        await asyncio.sleep(SETTLE_S)  # the last records are sent
        num_records = sum(taken) - before
        place.gateway.terminate()
        await asyncio.to_thread(place.gateway.wait, 15)
        found = json.loads(place.times.read_text())
    return RecordingCost(
        load=load, num_requests=number, num_records=num_records, cpu_s=found["cpu_s"], parts_s=found["parts"]
    )
