from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from engine.connection import Connection, Mailbox, bound_port, connect, listen
from engine.errors import ConnectionLost, WireError
from engine.host import check_loopback, format_address, host_id, parse_address, token_matches
from engine.types import KvLayout, Load, Role, WorkerState
from engine.wire import Goodbye, Hello, Ping, Pong, Welcome

TOKEN = "fleet-secret"
LAYOUT = KvLayout(
    model_id="m", weights_digest="d", dtype="seeded", num_layers=1, block_tokens=4, num_kv_heads=1, head_dim=1
)
WELCOME = Welcome("w-0", 7, Role.DECODE, WorkerState.READY, "m", LAYOUT, 128, True, Load())


class Worker:
    """The listening side: answers Welcome, then Pong to every Ping, and remembers who came and went."""

    def __init__(self, **bounds: float | int) -> None:
        self.bounds = bounds
        self.peers: list[Connection] = []
        self.closed: asyncio.Queue[str] = asyncio.Queue()

    def on_peer(self, connection: Connection, hello: Hello) -> None:
        self.peers.append(connection)
        connection.on_message = lambda conn, message: conn.send(Pong(message.nonce, Load())) and None
        connection.on_close = lambda _conn, reason: self.closed.put_nowait(reason)
        connection.send(WELCOME)

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        server = await listen("127.0.0.1", 0, TOKEN, self.on_peer, **self.bounds)  # type: ignore[arg-type]
        yield format_address("127.0.0.1", bound_port(server))
        server.close()
        for peer in self.peers:
            peer.close()


def hello(token: str = TOKEN, **other: object) -> Hello:
    return Hello("gw-1", "gateway", token, **other)  # type: ignore[arg-type]


async def test_a_peer_with_the_token_is_welcomed_and_answered() -> None:
    async with Worker().serve() as address:
        mailbox = Mailbox()
        connection = await connect(address, hello(), mailbox, mailbox.closed)
        assert connection.welcome == WELCOME
        connection.send(Ping(3))
        assert await mailbox.next(Pong) == Pong(3, Load())
        connection.close()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (hello("wrong"), "the fleet token is wrong"),
        (hello(""), "the fleet token is wrong"),
        (hello(protocol=99), "protocol 99 is not spoken here"),
        (Hello("x", "stranger", TOKEN), "peer_kind 'stranger'"),
    ],
)
async def test_a_bad_hello_is_refused_with_the_reason(bad: Hello, reason: str) -> None:
    worker = Worker()
    async with worker.serve() as address:
        with pytest.raises(ConnectionLost, match=reason):
            await connect(address, bad)
        assert worker.peers == []


async def test_a_first_message_that_is_no_hello_is_refused() -> None:
    async with Worker().serve() as address:
        reader, writer = await asyncio.open_connection(*parse_address(address))
        from engine.wire import Framer, encode

        writer.write(encode(Ping(1)))
        (goodbye,) = Framer().feed(await reader.read())
        assert goodbye == Goodbye("the first message must be Hello, not Ping")
        writer.close()


async def test_a_silent_peer_is_closed_when_the_hello_does_not_come() -> None:
    async with Worker(hello_timeout_s=0.01).serve() as address:
        reader, writer = await asyncio.open_connection(*parse_address(address))
        assert b"no Hello within" in await reader.read()
        writer.close()


async def test_a_malformed_frame_ends_the_connection_with_a_goodbye() -> None:
    worker = Worker()
    async with worker.serve() as address:
        mailbox = Mailbox()
        connection = await connect(address, hello(), mailbox, mailbox.closed)
        connection.send_frame(b"\x03\x00\x00\x00\xff\xff\xff")
        assert "malformed frame" in (await mailbox.next(Goodbye)).reason
        assert "malformed frame" in await worker.closed.get()


async def test_an_oversized_frame_is_refused_before_it_is_buffered() -> None:
    worker = Worker()
    async with worker.serve() as address:
        connection = await connect(address, hello())
        connection.send_frame(b"\xff\xff\xff\xff")
        assert "over the bound" in await worker.closed.get()


async def test_a_peer_that_does_not_read_is_cut_off_at_the_bound() -> None:
    worker = Worker(max_buffered_bytes=64 * 1024)
    async with worker.serve() as address:
        reader, writer = await asyncio.open_connection(*parse_address(address), limit=1024)
        from engine.wire import encode

        writer.write(encode(hello()))
        await reader.readexactly(1)
        frame = encode(Goodbye("x" * 60_000))
        for _ in range(10_000):
            if not worker.peers[0].send_frame(frame):
                break
        assert "slow peer" in await worker.closed.get()
        assert not worker.peers[0].is_open
        writer.close()


async def test_a_closed_connection_takes_nothing_more_and_says_so() -> None:
    worker = Worker()
    async with worker.serve() as address:
        connection = await connect(address, hello())
        connection.close()
        assert await worker.closed.get() == "the peer closed the connection"
        assert connection.send(Ping(1)) is False
        with pytest.raises(ConnectionLost):
            await connection.drain()


async def test_nobody_listening_is_one_clear_error() -> None:
    async with Worker().serve() as address:
        pass
    with pytest.raises(ConnectionLost, match=f"worker at {address} is not there"):
        await connect(address, hello())


async def test_a_worker_that_never_welcomes_times_out() -> None:
    server = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    address = format_address("127.0.0.1", server.sockets[0].getsockname()[1])
    with pytest.raises(ConnectionLost, match="did not answer within"):
        await connect(address, hello(), timeout_s=0.01)
    server.close()


async def test_a_waiter_learns_that_the_worker_died() -> None:
    worker = Worker()
    async with worker.serve() as address:
        mailbox = Mailbox()
        await connect(address, hello(), mailbox, mailbox.closed)
        worker.peers[0].abort("killed")
        with pytest.raises(ConnectionLost):
            await mailbox.next(Pong)


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "::", "example.org", ""])
def test_only_loopback_may_be_listened_on(host: str) -> None:
    with pytest.raises(WireError, match="not a loopback address"):
        check_loopback(host)


@pytest.mark.parametrize("address", ["", "nohost", ":80", "h:", "h:0", "h:65536", "h:x"])
def test_a_bad_address_is_named(address: str) -> None:
    with pytest.raises(WireError, match="is not host:port"):
        parse_address(address)


def test_addresses_survive_a_round_trip() -> None:
    assert parse_address(format_address("127.0.0.1", 80)) == ("127.0.0.1", 80)
    assert parse_address(format_address("::1", 80)) == ("::1", 80)


def test_an_empty_expected_token_admits_nobody() -> None:
    assert not token_matches("", "")
    assert token_matches("a", "a")
    assert not token_matches("a", "b")


def test_the_host_id_is_stable_within_a_boot() -> None:
    assert host_id() == host_id() != ""
