"""A gateway, as small as a test needs it: one connection to one worker, requests as awaitables."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from engine.connection import Connection, connect
from engine.types import FinishReason, Load, Role, SamplingParams, WorkerState, WorkKind
from engine.wire import (
    Cancel,
    Hello,
    Lease,
    Order,
    OrderResult,
    Ping,
    Pong,
    Prefilled,
    Pull,
    Rejected,
    Reserved,
    Status,
    Step,
    Submit,
    TokenEvent,
)

TOKEN = "test-fleet-token"
LIMIT_S = 60.0


@dataclass
class Stream:
    """What came back for one request on one worker."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    finish: FinishReason | None = None
    error: str = ""
    answer: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    some: asyncio.Event = field(default_factory=asyncio.Event)  # the first token came

    def take(self, event: TokenEvent) -> None:
        self.positions += range(event.position, event.position + len(event.tokens))
        self.tokens += event.tokens
        if event.tokens:
            self.some.set()
        if event.finish is not None:
            self.finish, self.error = event.finish, event.error
            self.ended.set()


class WorkerClient:
    """`await open(address)`, then `submit`, `order`, `ping`. Every wait has the bound LIMIT_S."""

    def __init__(self) -> None:
        self.streams: dict[str, Stream] = {}
        self.steps: list[Step] = []
        self.statuses: asyncio.Queue[Status] = asyncio.Queue()
        self.replies: asyncio.Queue[Any] = asyncio.Queue()
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.cached: set[int] = set()
        self.load = Load()

    @classmethod
    async def open(cls, address: str, peer_kind: str = "gateway", peer_id: str = "test") -> WorkerClient:
        client = cls()
        client.connection = await connect(address, Hello(peer_id, peer_kind, TOKEN), client._take, client._lost)
        return client

    connection: Connection

    def _take(self, _connection: Connection, message: Any) -> None:
        match message:
            case Step():
                self.steps.append(message)
                self.load = message.load
                if message.cache is not None:
                    self.cached = set() if message.cache.reset else self.cached
                    self.cached = (self.cached | set(message.cache.added)) - set(message.cache.removed)
                for event in message.events:
                    self.streams[event.req_id].take(event)
            case Status():
                self.statuses.put_nowait(message)
            case Reserved() | Prefilled():
                self.streams[message.req_id].answer.set_result(message)
            case Rejected():
                stream = self.streams[message.req_id]
                if not stream.answer.done():
                    stream.answer.set_result(message)
                stream.error = f"{message.code}: {message.detail}"
                stream.ended.set()
            case _:
                self.replies.put_nowait(message)

    def _lost(self, _connection: Connection, reason: str) -> None:
        self.closed.set_result(reason)
        for stream in self.streams.values():
            stream.error = stream.error or f"lost: {reason}"
            stream.ended.set()

    def submit(self, req_id: str, kind: WorkKind, prompt: list[int], **sampling: Any) -> Stream:
        stream = self.streams[req_id] = Stream()
        params = SamplingParams(**{"max_tokens": 8, "ignore_eos": True, **sampling})
        self.connection.send(Submit(req_id, 0, kind, prompt, len(prompt), params))
        return stream

    async def local(self, req_id: str, prompt: list[int], **sampling: Any) -> Stream:
        stream = self.submit(req_id, WorkKind.LOCAL, prompt, **sampling)
        await asyncio.wait_for(stream.ended.wait(), LIMIT_S)
        return stream

    async def prefill(self, req_id: str, prompt: list[int], **sampling: Any) -> Any:
        stream = self.submit(req_id, WorkKind.PREFILL, prompt, **sampling)
        return await asyncio.wait_for(stream.answer, LIMIT_S)

    async def reserve(self, req_id: str, prompt: list[int], **sampling: Any) -> Stream:
        stream = self.submit(req_id, WorkKind.DECODE, prompt, **sampling)
        answer = await asyncio.wait_for(stream.answer, LIMIT_S)
        assert isinstance(answer, Reserved), answer
        return stream

    def pull(self, req_id: str, lease: Lease, first_token: int) -> None:
        self.connection.send(Pull(req_id, 0, lease, first_token))

    def cancel(self, req_id: str) -> None:
        self.connection.send(Cancel(req_id, 0))

    async def order(self, verb: str, role: Role = Role.UNASSIGNED, fence: int = 1) -> OrderResult:
        self.connection.send(Order("o", fence, verb, role))
        return await self.reply(OrderResult)

    async def place(self, role: Role) -> None:
        assert (await self.order("place", role)).ok

    async def reply(self, kind: type) -> Any:
        reply = await asyncio.wait_for(self.replies.get(), LIMIT_S)
        assert isinstance(reply, kind), reply
        return reply

    async def ping(self) -> Load:
        self.connection.send(Ping(1))
        pong: Pong = await self.reply(Pong)
        return pong.load

    async def idle(self) -> Load:
        """Wait until the worker holds nothing."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                load = await self.ping()
                if load.kv_blocks_held + load.kv_blocks_reserved + load.num_waiting + load.num_running == 0:
                    return load

    async def status(self, state: WorkerState) -> Status:
        async with asyncio.timeout(LIMIT_S):
            while (status := await self.statuses.get()).state is not state:
                pass
            return status

    def close(self) -> None:
        self.connection.close()


async def split(prefill: WorkerClient, decode: WorkerClient, req_id: str, prompt: list[int], **sampling: Any) -> Stream:
    """One request over two workers, as a gateway does it. The returned tokens begin with the prefill worker's."""
    stream = await decode.reserve(req_id, prompt, **sampling)
    prefilled = await prefill.prefill(req_id, prompt, **sampling)
    assert isinstance(prefilled, Prefilled), prefilled
    stream.tokens.append(prefilled.first_token)
    stream.positions.append(len(prompt))
    if prefilled.lease is not None:
        decode.pull(req_id, prefilled.lease, prefilled.first_token)
        await asyncio.wait_for(stream.ended.wait(), LIMIT_S)
    return stream
