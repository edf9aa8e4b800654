"""A bridged worker's end of the wire: who is connected, what they are told of the engine, and how full it is.

Decided here: the opening, the heartbeat, and what a load and a layout say of an engine that tells us little. Not
decided here: what a message means (`control.bridge.worker`).
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

from control.bridge.engine_http import EngineHttp, Shape
from control.bridge.handoffs import Handoffs
from control.bridge.tally import PromptClock, Work, load_of
from engine.connection import Connection, listen
from engine.duty import Duty
from engine.server import HEARTBEAT_S
from engine.types import KvLayout, Load, Role
from engine.wire import Hello, Message, Step, TokenEvent, Welcome

if TYPE_CHECKING:
    from control.bridge.asks import Asks


class Yard(Protocol):
    """What the workers of one fleet share."""

    handoffs: Handoffs

    def reserved(self, req_id: str, attempt: int) -> tuple[Asks, Work] | None:
        """Where room for the decode phase of this attempt is kept."""

    async def prove(self, worker: Asks, role: Role) -> str:
        """Why this worker does not serve in that role; "" when a canary showed that it does."""

    def changed(self) -> None:
        """A worker has begun another life."""


class Peers(ABC):
    """One engine's connections, and what we count of it."""

    def __init__(self, worker_id: str, http: EngineHttp, yard: Yard, token: str, simulated: bool = False) -> None:
        self.worker_id = worker_id
        self.http = http
        self.duty = Duty()
        self.shape = Shape(model="")
        self.epoch = 0
        self.is_up = False
        self.address = ""
        self.why_down = "not looked at yet"
        self._yard = yard
        self._token = token
        self._simulated = simulated
        self._server: asyncio.Server | None = None
        self._peers: dict[str, Connection] = {}
        self._gateways: dict[str, Connection] = {}
        self._works: dict[tuple[str, int], Work] = {}
        self._clock = PromptClock()
        self._step_id = 0
        self._beat: asyncio.TimerHandle | None = None

    async def start(self, sock: socket.socket, address: str) -> None:
        self.address = address
        self._server = await listen("127.0.0.1", 0, self._token, self._on_peer, sock=sock)
        self._send_beat()

    @abstractmethod
    def _on_message(self, key: str, message: Any) -> None:
        """One message of a peer."""

    @abstractmethod
    def _on_close(self, key: str, connection: Connection) -> None:
        """A peer is gone."""

    @abstractmethod
    def _settle(self) -> None:
        """Move as far as the work that is left allows."""

    @property
    def _num_computing(self) -> int:
        return sum(each.computes_prompt for each in self._works.values())

    def work(self, req_id: str, attempt: int) -> Work | None:
        return self._works.get((req_id, attempt))

    def _on_peer(self, connection: Connection, hello: Hello) -> None:
        if not self.is_up:
            connection.refuse(f"the engine is not there: {self.why_down}")
            return
        key = f"{hello.peer_kind}:{hello.peer_id}"
        if key in self._peers:
            self._peers[key].abort("another connection of the same peer")
        self._peers[key] = connection
        connection.on_message = lambda _connection, message: self._on_message(key, message)
        connection.on_close = lambda closed, _reason: self._on_close(key, closed)
        connection.send(self._welcome())
        if hello.peer_kind == "gateway":
            self._gateways[key] = connection

    def _welcome(self) -> Welcome:
        return Welcome(
            self.worker_id, self.epoch, self.duty.role, self.duty.state, self.shape.model, self.layout(),
            self.shape.max_context, self._simulated, self.load(), pid=os.getpid(),
        )  # fmt: skip

    def layout(self) -> KvLayout:
        """The engine keeps its layout to itself; what gateways count in is the size of a block."""
        return KvLayout(
            model_id=self.shape.model, weights_digest="", dtype="float32", num_layers=0,
            block_tokens=self.shape.block_tokens, num_kv_heads=0, head_dim=0,
        )  # fmt: skip

    def load(self) -> Load:
        num_leased = self._yard.handoffs.num_of(self.worker_id)
        now_s = time.monotonic()
        self._clock.note(self._num_computing, now_s)
        return load_of(self._works.values(), num_leased, self._clock, self.shape, now_s)

    def _send(self, key: str, message: Message) -> None:
        connection = self._peers.get(key)
        if connection is not None:
            connection.send(message)

    def _send_step(self, key: str, events: list[TokenEvent]) -> None:
        self._step_id += 1
        self._send(key, Step(self.worker_id, self.epoch, self._step_id, events, self.load()))

    def _send_beat(self) -> None:
        self._beat = asyncio.get_running_loop().call_later(HEARTBEAT_S, self._send_beat)
        self._yard.handoffs.expire(self.worker_id, time.monotonic())
        self._settle()  # KV that waited here may have been fetched meanwhile
        for key in list(self._gateways):
            self._send_step(key, [])
