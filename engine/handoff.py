"""Moving one request's KV from the worker that leased it to the worker that will decode it.

Decided here: which transport carries it, what is refused (another model, dtype or block layout; an epoch that is gone),
and when a copy is good. Not here: how bytes move (`engine.handoff_shm`, `engine.handoff_tcp`: one function each, in the
table below, with room for a GPU transport), and who owns a block (`engine.core`, on either side).

    asker (decode worker)                         holder (prefill worker)
      Fetch(lease, layout, transport, blocks) --->  lease valid? layout equal?  no: HandoffReleased(ok=False, why)
      shm: maps the pool, copies                    tcp: streams Blocks, watching the lease
      HandoffAck -------------------------------->  releases the lease's blocks if it still holds
      <---------------------- HandoffReleased(ok)   ok: the lease held until the copy had ended, so the copy is good
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from engine import handoff_shm, handoff_tcp
from engine.connection import Connection, connect
from engine.errors import ConnectionLost, HandoffError, KvPoolError, LayoutMismatch
from engine.handoff_link import HandoffJob, HolderLink
from engine.pool_file import KvStore, PoolView
from engine.types import KvLayout
from engine.wire import Blocks, Fetch, HandoffAck, HandoffReleased, Hello, Lease, Message

Transport = Callable[[HolderLink, HandoffJob], Awaitable[None]]
#: Waits as long as one end of a modelled device takes for so many blocks, beside other copies. None: a real device.
Carry = Callable[[int], Coroutine[Any, Any, None]]
TRANSPORTS: dict[str, Transport] = {"shm": handoff_shm.copy, "tcp": handoff_tcp.copy}


@dataclass(frozen=True, slots=True, kw_only=True)
class HandoffReport:
    transport: str
    num_blocks: int
    num_bytes: int


def choose_transport(lease: Lease, own_host_id: str, is_mappable: bool, wish: str = "auto") -> str:
    """Shared memory between neighbours that both have a pool file, else TCP. `wish` forces one."""
    if wish != "auto":
        return wish
    neighbours = lease.host_id == own_host_id and lease.host_id != ""
    return "shm" if neighbours and lease.pool_path and is_mappable else "tcp"


class HandoffAsker:
    """The decode side of one worker: connections to holders, kept per address, and the exchanges that run on them."""

    def __init__(
        self,
        *,
        hello: Hello,
        layout: KvLayout,
        store: KvStore,
        own_host_id: str,
        executor: Executor,
        wish: str = "auto",
        carry: Carry | None = None,
    ) -> None:
        self._hello = hello
        self._layout = layout
        self._store = store
        self._own_host_id = own_host_id
        self._executor = executor
        self._wish = wish
        self._carry = carry
        self._connections: dict[str, asyncio.Task[Connection]] = {}
        self._links: dict[tuple[str, str], HolderLink] = {}  # (address, lease_id)
        self._views: dict[str, PoolView] = {}  # pool path -> our mapping of it

    async def pull(self, lease: Lease, source_blocks: Sequence[int], own_blocks: Sequence[int]) -> HandoffReport:
        """Copy leased blocks into our own and have the lease released; returns only when the copy is good.

        `own_blocks` must stay ours until this returns or raises: nothing writes them afterwards.
        Raises LayoutMismatch, or HandoffError when the holder is gone, slow, restarted or no longer holds the lease.
        """
        difference = self._layout.difference(lease.layout)
        if difference:
            raise LayoutMismatch(f"worker {lease.worker_id}: {difference}")
        try:
            async with asyncio.timeout(lease.expires_in_s):
                return await self._exchange(lease, source_blocks, own_blocks)
        except TimeoutError as error:
            raise HandoffError(f"worker {lease.worker_id}: the handoff took longer than its lease") from error
        except (ConnectionLost, HandoffError) as error:
            raise HandoffError(f"worker {lease.worker_id}: {error}") from error

    async def _exchange(self, lease: Lease, source: Sequence[int], own: Sequence[int]) -> HandoffReport:
        name = self._transport_for(lease)
        connection = await self._connection(lease)
        link = HolderLink(lease.lease_id, connection)
        key = (lease.address, lease.lease_id)
        self._links[key] = link
        try:
            _send(connection, Fetch(lease.lease_id, self._layout, name, list(source)))
            if source:
                job = HandoffJob(lease=lease, source_blocks=source, own_blocks=own, store=self._store,
                                 executor=self._executor, view_of=self._view)  # fmt: skip
                await TRANSPORTS[name](link, job)
                if self._carry is not None:
                    await self._carry(len(source))
            _send(connection, HandoffAck(lease.lease_id))
            await link.released()
        finally:
            del self._links[key]
        return HandoffReport(transport=name, num_blocks=len(source), num_bytes=len(source) * self._layout.block_bytes)

    def _transport_for(self, lease: Lease) -> str:
        return choose_transport(lease, self._own_host_id, os.path.exists(lease.pool_path), self._wish)

    async def _connection(self, lease: Lease) -> Connection:
        """The cached connection to this holder, or a new one; two exchanges at once share one attempt."""
        task = self._connections.get(lease.address)
        if task is None or (task.done() and (task.cancelled() or task.exception() or not task.result().is_open)):
            task = asyncio.create_task(self._connect(lease.address))
            self._connections[lease.address] = task
        connection = await asyncio.shield(task)
        welcome = connection.welcome
        if (welcome.worker_id, welcome.epoch) != (lease.worker_id, lease.epoch):
            now = f"{welcome.worker_id} epoch {welcome.epoch}"
            raise HandoffError(f"the lease is of {lease.worker_id} epoch {lease.epoch}, at its address is now {now}")
        return connection

    async def _connect(self, address: str) -> Connection:
        def on_message(_connection: Connection, message: Any) -> None:
            if isinstance(message, Blocks | HandoffReleased):
                link = self._links.get((address, message.lease_id))
                if link is not None:
                    link.take(message)

        def on_close(_connection: Connection, reason: str) -> None:
            self._connections.pop(address, None)
            for (of_address, _lease_id), link in list(self._links.items()):
                if of_address == address:
                    link.fail(f"the holder was lost in the middle of a handoff: {reason}")

        return await connect(address, self._hello, on_message, on_close)

    def _view(self, path: str) -> PoolView:
        """Our mapping of a neighbour's pool. Mappings of unlinked pools are dropped: their epoch is over."""
        view = self._views.get(path)
        if view is None:
            self._views = {known: kept for known, kept in self._views.items() if os.path.exists(known)}
            view = self._views[path] = PoolView(path, self._layout.block_bytes)
        return view

    async def close(self) -> None:
        for task in list(self._connections.values()):
            task.cancel()
            if task.done() and not task.cancelled() and task.exception() is None:
                task.result().close("the worker stops")
        self._views.clear()


def _send(connection: Connection, message: Message) -> None:
    if not connection.send(message):
        raise ConnectionLost("the connection to the holder is closed")


class HandoffHolder:
    """The prefill side of one worker: checks a Fetch, streams blocks when asked, releases on acknowledgement."""

    def __init__(
        self,
        *,
        layout: KvLayout,
        store: KvStore,
        leased_blocks: Callable[[str], Sequence[int] | None],
        acknowledge: Callable[[str], bool],
        carry: Carry | None = None,
    ) -> None:
        """With `carry`, an acknowledgement counts once the holder's end has carried all that was fetched, too."""
        self._layout = layout
        self._store = store
        self._leased_blocks = leased_blocks
        self._acknowledge = acknowledge
        self._carry = carry
        self._carried: dict[tuple[Connection, str], asyncio.Task[None]] = {}
        self._streams: set[asyncio.Task[None]] = set()
        self._refused: set[tuple[Connection, str]] = set()  # with a lease that is held: their acks mean nothing

    def on_fetch(self, connection: Connection, fetch: Fetch) -> None:
        """Refuse with the reason, or (tcp) start to stream; shm needs no answer, the asker copies by itself."""
        problem = self._problem_with(fetch)
        self._note(connection, fetch.lease_id, is_refused=bool(problem))
        if problem:
            connection.send(HandoffReleased(fetch.lease_id, ok=False, reason=problem))
            return
        if self._carry is not None and fetch.blocks:
            self._carried = {
                key: task for key, task in self._carried.items() if self._leased_blocks(key[1]) is not None
            }
            self._carried[(connection, fetch.lease_id)] = asyncio.create_task(self._carry(len(fetch.blocks)))
        if fetch.transport == "tcp" and fetch.blocks:
            task = asyncio.create_task(self._stream(connection, fetch))
            self._streams.add(task)
            task.add_done_callback(self._streams.discard)

    def _note(self, connection: Connection, lease_id: str, *, is_refused: bool) -> None:
        """Remember whether this lease was refused to this asker, for as long as there is such a lease."""
        self._refused.discard((connection, lease_id))
        if is_refused and self._leased_blocks(lease_id) is not None:
            self._refused = {key for key in self._refused if self._leased_blocks(key[1]) is not None}
            self._refused.add((connection, lease_id))

    def on_ack(self, connection: Connection, ack: HandoffAck) -> None:
        """Release the lease. An asker whose copy failed (ok=False) or whose Fetch was refused leaves it as it is."""
        if (connection, ack.lease_id) in self._refused:
            self._refused.discard((connection, ack.lease_id))
            return
        carried = self._carried.get((connection, ack.lease_id))
        if not ack.ok:
            if carried is not None:
                carried.cancel()
        elif carried is None:
            self._let_go(connection, ack.lease_id)
        else:
            carried.add_done_callback(lambda task: self._carried_out(task, connection, ack.lease_id))

    def _carried_out(self, task: asyncio.Task[None], connection: Connection, lease_id: str) -> None:
        """Our end is through with what the asker had already: now its acknowledgement counts."""
        self._carried.pop((connection, lease_id), None)
        if not task.cancelled():
            self._let_go(connection, lease_id)

    def _let_go(self, connection: Connection, lease_id: str) -> None:
        ok = self._acknowledge(lease_id)
        connection.send(HandoffReleased(lease_id, ok=ok, reason="" if ok else f"lease {lease_id} has expired"))

    def _problem_with(self, fetch: Fetch) -> str:
        held = self._leased_blocks(fetch.lease_id)
        if held is None:
            return f"lease {fetch.lease_id} is unknown or has expired"
        difference = self._layout.difference(fetch.layout)
        if difference:
            return difference
        if fetch.transport not in TRANSPORTS:
            return f"transport {fetch.transport!r} is not one of {', '.join(TRANSPORTS)}"
        foreign = set(fetch.blocks) - set(held)
        return f"block {min(foreign)} is not under lease {fetch.lease_id}" if foreign else ""

    def forget(self, connection: Connection) -> None:
        """The asker is gone. Its leases stay until they expire or their gateway releases them."""
        self._refused = {key for key in self._refused if key[0] is not connection}
        for key in [each for each in self._carried if each[0] is connection]:
            self._carried.pop(key).cancel()

    async def _stream(self, connection: Connection, fetch: Fetch) -> None:
        try:
            for frame in handoff_tcp.frames(fetch.lease_id, fetch.blocks, self._store):
                connection.send(frame)
                await connection.drain()
                if self._leased_blocks(fetch.lease_id) is None:
                    reason = f"lease {fetch.lease_id} expired while its blocks were sent"
                    connection.send(HandoffReleased(fetch.lease_id, ok=False, reason=reason))
                    return
        except KvPoolError as error:
            connection.send(HandoffReleased(fetch.lease_id, ok=False, reason=str(error)))
        except ConnectionLost:
            return  # the asker is gone; the lease stays until it expires or its gateway releases it

    async def close(self) -> None:
        for task in [*self._streams, *self._carried.values()]:
            task.cancel()
