"""Metrics pages over real HTTP on loopback, from engines that answer, hang, lie or flood."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class FakeEngine:
    """`page` is what it answers with; `fault`: "" | hang | flood | bomb | error | garbage | other."""

    page: str = ""
    fault: str = ""
    version: str = "0.32.0"
    url: str = ""
    num_looks: int = 0
    _writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                if request.startswith(b"GET /version"):
                    self._say(writer, "200 OK", f'{{"version": "{self.version}"}}')
                    continue
                self.num_looks += 1
                if self.fault == "hang":
                    await asyncio.sleep(3600)
                elif self.fault == "flood":
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 52428800\r\n\r\n")
                    for _ in range(50):
                        writer.write(b"vllm:flood 1\n" * 80_660)
                        await writer.drain()
                    return
                elif self.fault == "bomb":
                    body = gzip.compress(b"vllm:flood 1\n" * 100_000)
                    head = f"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {len(body)}\r\n\r\n"
                    writer.write(head.encode() + body)
                elif self.fault == "error":
                    self._say(writer, "503 Service Unavailable", "no")
                else:
                    page = {"garbage": "vllm:generation_tokens_total{", "other": "node_load1 2\n"}
                    self._say(writer, "200 OK", page.get(self.fault, self.page))

    @staticmethod
    def _say(writer: asyncio.StreamWriter, status: str, text: str) -> None:
        body = text.encode()
        writer.write(f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)


@contextlib.asynccontextmanager
async def engines(*served: FakeEngine) -> AsyncIterator[tuple[FakeEngine, ...]]:
    """They listen until the end."""
    servers = [await asyncio.start_server(each.answer, "127.0.0.1", 0) for each in served]
    try:
        for engine, server in zip(served, servers, strict=True):
            engine.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield served
    finally:
        for engine in served:
            for writer in engine._writers:
                writer.transport.abort()
        for server in servers:
            server.close()


async def until(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110  any state of any part
            await asyncio.sleep(0.01)
