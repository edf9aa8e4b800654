"""How much of a gateway's CPU time goes into recording, while it serves through null workers and a plane takes all.

Two gateways serve the same requests, one after the other: one as it ships, whose CPU time the shares are of, and one
whose recording is timed (`bench._timed_gateway`).
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from bench.gateway import STREAM_TOKENS, UNARY_TOKENS, body, cpu_s, fronted, many
from control.auth import open_auth
from control.gateway import link
from control.types.workers import Role

SETTLE_S = 1.0
TOKENS = "tokens"  # the part that each token costs


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingCost:
    """CPU time of a gateway, and what of it is recording; `num_records`: how many the plane took."""

    load: str
    num_requests: int
    num_tokens: int
    num_records: int
    cpu_s: float
    parts_s: dict[str, float]
    calls: dict[str, int]

    @property
    def share(self) -> float:
        return sum(self.parts_s.values()) / self.cpu_s

    @property
    def us_per_request(self) -> float:
        """Of recording, without what each token costs."""
        return (sum(self.parts_s.values()) - self.parts_s[TOKENS]) / self.num_requests * 1e6

    @property
    def us_per_token(self) -> float:
        return self.parts_s[TOKENS] / self.num_tokens * 1e6


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
    found = []
    for load, payload, number, num_tokens, step_s in (
        ("unary, 16 tokens", unary, num_requests, UNARY_TOKENS, 0.0),
        ("streams, 128 tokens", stream, num_streams, STREAM_TOKENS, 0.01),
    ):
        shipped, _ = await _measure(model, port, payload, number, step_s, timed=False)
        timed, num_records = await _measure(model, port + 10, payload, number, step_s, timed=True)
        found.append(
            RecordingCost(
                load=load,
                num_requests=number,
                num_tokens=number * num_tokens,
                num_records=num_records,
                cpu_s=shipped["cpu_s"],
                parts_s={name: part["s"] for name, part in timed["parts"].items()},
                calls={name: part["calls"] for name, part in timed["parts"].items()},
            )
        )
        port += 20
    return found


def _with_tokens(run_dir: Path) -> None:
    open_auth(run_dir, time.time())


async def _measure(
    model: Path, port: int, payload: bytes, number: int, step_s: float, *, timed: bool
) -> tuple[dict[str, Any], int]:
    """CPU time of one gateway, what it timed, and how many records the plane took."""
    async with (
        sink(port + 1) as taken,
        fronted(port, model, [("null-0", Role.MIXED, step_s)], timed=timed, prepare=_with_tokens) as place,
    ):
        await many(port, payload, max(64, number // 10), 8, "empty_pool")
        if timed:
            place.gateway.send_signal(signal.SIGUSR1)
        records_before, cpu_before_s = sum(taken), cpu_s(place.gateway)
        await many(port, payload, number, 16, "empty_pool")
        await asyncio.sleep(SETTLE_S)  # the last records are sent
        num_records, spent_s = sum(taken) - records_before, cpu_s(place.gateway) - cpu_before_s
        place.gateway.terminate()
        await asyncio.to_thread(place.gateway.wait, 15)
        parts = json.loads(place.times.read_text()) if timed else {}
    return {"cpu_s": spent_s, "parts": parts}, num_records
