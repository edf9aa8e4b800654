"""The plane's end of the gateways' WebSocket: tables, acknowledgements and usage down, records and beats up.

Decided here: who is connected, and that a slow gateway gets the newest table rather than all of them. Not decided
here: what is in a table (`control.tables`), what becomes of records and beats (the plane's callbacks).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from control.gateway import link
from control.gateway.usage import Usage, add_used, sum_of
from control.intake import IntakeFull
from control.progress import TablesSeen
from control.types.requests import RequestRecord
from control.types.routing import RoutingTable

HELLO_TIMEOUT_S = 10.0
SILENCE_S = 15.0  # a gateway beats once a second
POLICY_VIOLATION = 1008
TRY_AGAIN_LATER = 1013
GOING_AWAY = 1001
REPLACED = 4000


class Socket(Protocol):
    """What the hub needs of a WebSocket (starlette's WebSocket has it)."""

    async def receive_bytes(self) -> bytes: ...

    async def send_bytes(self, data: bytes) -> None: ...

    async def close(self, code: int = 1000, reason: str | None = None) -> None: ...


class SocketClosed(Exception):
    """The other side went away."""


@dataclass(slots=True)
class Connection:
    """One connected gateway. `wake` is set when there is something to send."""

    hello: link.GatewayHello
    socket: Socket
    table: RoutingTable | None = None  # newest, not sent yet
    ack: int | None = None  # newest, not sent yet
    table_version: int = 0  # as the gateway's beats say
    usage: Usage | None = None  # of its newest beat
    used_elsewhere_s: dict[str, float] = field(default_factory=dict)  # by others, not told it yet
    is_due: bool = False  # to be told what the others take
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def spool(self) -> str:
        """Names one life of a gateway: its records are numbered from 1 in each."""
        return f"{self.hello.gateway_id}@{self.hello.started_unix_s:.3f}"


class GatewayHub:
    """All gateways of one fleet."""

    def __init__(
        self,
        *,
        durable_seq: Callable[[str], Awaitable[int]],  # by spool
        on_records: Callable[[str, int, list[RequestRecord]], None],  # by spool
        on_beat: Callable[[str, link.Beat], None],
        on_gone: Callable[[str], None],
    ) -> None:
        self._durable_seq = durable_seq
        self._on_records = on_records
        self._on_beat = on_beat
        self._on_gone = on_gone
        self._connections: dict[str, Connection] = {}
        self._table: RoutingTable | None = None

    @property
    def gateway_ids(self) -> list[str]:
        return sorted(self._connections)

    def tables_seen(self) -> TablesSeen:
        """How many gateways hold the newest table, by their own word."""
        newest = self._table.version if self._table else 0
        current = sum(1 for each in self._connections.values() if each.table_version >= newest)
        return TablesSeen(num_gateways=len(self._connections), num_current=current)

    def push(self, table: RoutingTable) -> None:
        """Every gateway gets this table; one that is behind skips those between."""
        self._table = table
        for connection in self._connections.values():
            connection.table = table
            connection.wake.set()

    def acknowledge(self, spool: str, up_to_seq: int) -> None:
        """The records of this life of a gateway up to here are durable."""
        for connection in self._connections.values():
            if connection.spool == spool:
                connection.ack = max(up_to_seq, connection.ack or 0)
                connection.wake.set()

    async def serve(self, socket: Socket) -> None:
        """Serve one accepted, authenticated socket until it closes; what is not our protocol closes it."""
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                hello = link.decode(await socket.receive_bytes())
            if not isinstance(hello, link.GatewayHello):
                raise msgspec.ValidationError("the first message must be GatewayHello")
        except SocketClosed:
            return
        except (TimeoutError, msgspec.MsgspecError) as error:
            await _close(socket, POLICY_VIOLATION, f"no GatewayHello: {error}")
            return
        connection = Connection(hello, socket)
        connection.ack = await self._durable_seq(connection.spool)
        connection.table = self._table
        await self._replace(connection)
        connection.wake.set()
        sender = asyncio.create_task(self._send(connection), name=f"gateway-{hello.gateway_id}")
        try:
            await self._receive(connection)
        finally:
            sender.cancel()
            with contextlib.suppress(asyncio.CancelledError, SocketClosed):
                await sender
            if self._connections.get(hello.gateway_id) is connection:
                del self._connections[hello.gateway_id]
                self._on_gone(hello.gateway_id)

    async def close(self) -> None:
        """Say goodbye to every gateway; they go on with the table they have."""
        for connection in list(self._connections.values()):
            await _close(connection.socket, GOING_AWAY, "the plane is stopping")

    async def _replace(self, connection: Connection) -> None:
        """The newest connection of a gateway id counts: an older one is a half-dead leftover."""
        before = self._connections.get(connection.hello.gateway_id)
        self._connections[connection.hello.gateway_id] = connection
        if before is not None:
            await _close(before.socket, REPLACED, "another connection has this gateway id")

    async def _receive(self, connection: Connection) -> None:
        gateway_id = connection.hello.gateway_id
        while True:
            try:
                async with asyncio.timeout(SILENCE_S):
                    message = link.decode(await connection.socket.receive_bytes())
                match message:
                    case link.Records():
                        self._on_records(connection.spool, message.first_seq, message.records)
                    case link.Beat():
                        connection.table_version = message.table_version
                        self._share(connection, message.usage)
                        self._on_beat(gateway_id, message)
                    case _:
                        raise msgspec.ValidationError(f"a gateway does not send {type(message).__name__}")
            except SocketClosed:
                return None
            except TimeoutError:
                return await _close(connection.socket, POLICY_VIOLATION, f"silent for {SILENCE_S:g} s")
            except IntakeFull as full:
                return await _close(connection.socket, TRY_AGAIN_LATER, str(full))
            except msgspec.MsgspecError as error:
                return await _close(connection.socket, POLICY_VIOLATION, f"not a link message: {error}")

    def _share(self, connection: Connection, usage: Usage | None) -> None:
        """Keep what this gateway took for the others, and tell it what they took."""
        connection.usage = usage
        if usage is None:
            return
        for other in self._connections.values():
            if other is not connection and other.usage is not None:
                other.used_elsewhere_s = add_used(other.used_elsewhere_s, usage.used_s)
        connection.is_due = True
        connection.wake.set()

    def _elsewhere(self, connection: Connection) -> Usage:
        """What all others take now, and have used since this one was told."""
        others = [each.usage for each in self._connections.values() if each is not connection and each.usage]
        used_s, connection.used_elsewhere_s = connection.used_elsewhere_s, {}
        return Usage(used_s, sum_of(each.waiting for each in others), sum_of(each.batch for each in others))

    async def _send(self, connection: Connection) -> None:
        while True:
            await connection.wake.wait()
            connection.wake.clear()
            table, connection.table = connection.table, None
            ack, connection.ack = connection.ack, None
            if table is not None:
                await connection.socket.send_bytes(link.encode(link.TablePush(table=table)))
            if ack is not None:
                await connection.socket.send_bytes(link.encode(link.RecordsAck(up_to_seq=ack)))
            if connection.is_due:
                connection.is_due = False
                await connection.socket.send_bytes(link.encode(link.Elsewhere(usage=self._elsewhere(connection))))


async def _close(socket: Socket, code: int, reason: str) -> None:
    """Close; a socket that is closed already is fine. A reason is at most 123 bytes on the wire."""
    with contextlib.suppress(SocketClosed, RuntimeError, OSError):
        await socket.close(code, reason.encode()[:123].decode(errors="ignore"))
