"""One framed connection of the wire, for both of its sides: workers, gateways, the plane.

Decided here: the opening (Hello with the fleet's token, answered by Welcome or Goodbye, within a bound), the bound on
what waits to be written, and what a malformed frame means (the connection ends). Not here: what any message means.

Everything runs on one asyncio loop; nothing here may be called from another thread.

    conn = await connect(address, Hello("gw-1", "gateway", token), on_message=handle, on_close=lost)
    conn.welcome.role ...; conn.send(Submit(...)); await conn.drain(); conn.close()
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any, Final, cast

from engine.errors import ConnectionLost, WireError
from engine.host import check_loopback, format_address, parse_address, token_matches
from engine.wire import PROTOCOL, Framer, Goodbye, Hello, Message, Welcome, encode

#: A peer that reads slower than this is cut off: its requests are cheaper to redo than memory is to find.
MAX_BUFFERED_BYTES: Final = 8 * 2**20
HELLO_TIMEOUT_S: Final = 5.0
CONNECT_TIMEOUT_S: Final = 5.0

OnMessage = Callable[["Connection", Any], None]
OnClose = Callable[["Connection", str], None]
OnWelcome = Callable[["Connection"], None]


def _ignore_message(connection: Connection, message: Any) -> None:
    """Until somebody listens, nothing is expected."""


def _ignore_close(connection: Connection, reason: str) -> None:
    """Nobody asked to be told."""


def _ignore_welcome(connection: Connection) -> None:
    """It is there to be read, as `welcome`."""


class Connection(asyncio.Protocol):
    """Messages in by callback, frames out within a bound. `on_message` and `on_close` may be replaced at any time.

    `on_close` is called exactly once, with one line that says why, after the last `on_message`.
    """

    def __init__(
        self,
        on_message: OnMessage = _ignore_message,
        on_close: OnClose = _ignore_close,
        *,
        max_buffered_bytes: int = MAX_BUFFERED_BYTES,
    ) -> None:
        self.on_message = on_message
        self.on_close = on_close
        self.hello: Hello | None = None  # of the other side, on the listening side
        self._welcome: Welcome | None = None
        self._max_buffered_bytes = max_buffered_bytes
        self._framer = Framer()
        self._transport: asyncio.Transport | None = None
        self._close_reason = ""
        self._is_closed = False
        self._writable: asyncio.Event = asyncio.Event()
        self._writable.set()

    @property
    def welcome(self) -> Welcome:
        """The worker's first frame, on the connecting side."""
        if self._welcome is None:
            raise ConnectionLost("this connection has seen no Welcome")
        return self._welcome

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._is_closed and not self._transport.is_closing()

    def send(self, message: Message) -> bool:
        """Queue one message. False when the connection is closed, or closes now because the peer reads too slowly."""
        return self.send_frame(encode(message))

    def send_frame(self, frame: bytes) -> bool:
        """Queue whole frames that are encoded already, so that one encoding serves many peers."""
        transport = self._transport
        if transport is None or self._is_closed or transport.is_closing():
            return False
        waiting = transport.get_write_buffer_size()
        if waiting > self._max_buffered_bytes:
            self.abort(
                f"slow peer: {waiting} bytes wait to be sent, over the bound of {self._max_buffered_bytes} bytes"
            )
            return False
        transport.write(frame)
        return True

    async def drain(self) -> None:
        """Wait until the peer has taken most of what was sent. Raises ConnectionLost when it never will."""
        await self._writable.wait()
        if not self.is_open:
            raise ConnectionLost(self._close_reason or "the connection is closed")

    def close(self, reason: str = "closed here") -> None:
        """Send what is queued, then close."""
        self._close_reason = self._close_reason or reason
        if self._transport is not None:
            self._transport.close()

    def abort(self, reason: str) -> None:
        """Close at once and drop what is queued."""
        self._close_reason = self._close_reason or reason
        if self._transport is not None:
            self._transport.abort()

    def refuse(self, reason: str) -> None:
        """Say why, then close."""
        self.send(Goodbye(reason))
        self.close(reason)

    # --- asyncio.Protocol --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        _watch_for_dead_host(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._framer.feed(data):
                if self._is_closed or self._close_reason:
                    return
                self.on_message(self, message)
        except WireError as error:
            self.refuse(str(error))

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_closed = True
        self._close_reason = self._close_reason or (
            f"connection lost: {exc}" if exc else "the peer closed the connection"
        )
        self._writable.set()
        on_close, self.on_close, self.on_message = self.on_close, _ignore_close, _ignore_message
        on_close(self, self._close_reason)


def _watch_for_dead_host(sock: socket.socket | None) -> None:
    """A dead process is seen as end-of-file; a host that vanished only by keepalive, here within about 20 s."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


# --- connecting side ---------------------------------------------------------------------------------------------


async def connect(
    address: str,
    hello: Hello,
    on_message: OnMessage = _ignore_message,
    on_close: OnClose = _ignore_close,
    *,
    on_welcome: OnWelcome = _ignore_welcome,
    timeout_s: float = CONNECT_TIMEOUT_S,
    max_buffered_bytes: int = MAX_BUFFERED_BYTES,
) -> Connection:
    """Open one connection to one worker; `on_message` gets everything after its Welcome.

    What comes right behind the Welcome is newer than it, and is handled before this returns: whoever keeps what a
    Welcome says takes it in `on_welcome`, which is called before any `on_message`.

    Raises ConnectionLost, one line, when the worker is not there, refuses us or does not answer within `timeout_s`.
    """
    host, port = parse_address(address)
    loop = asyncio.get_running_loop()
    opened: asyncio.Future[Welcome] = loop.create_future()

    def first_message(connection: Connection, message: Any) -> None:
        if isinstance(message, Welcome) and message.protocol == PROTOCOL:
            connection._welcome = message
            connection.on_message, connection.on_close = on_message, on_close
            on_welcome(connection)
            if not opened.done():
                opened.set_result(message)
            return
        said = message.reason if isinstance(message, Goodbye) else f"{type(message).__name__} instead of Welcome"
        if isinstance(message, Welcome):
            said = f"it speaks protocol {message.protocol}, we speak {PROTOCOL}"
        connection.close(f"refused: {said}")

    def closed_early(connection: Connection, reason: str) -> None:
        if not opened.done():
            opened.set_exception(ConnectionLost(f"worker at {address}: {reason}"))

    connection = Connection(first_message, closed_early, max_buffered_bytes=max_buffered_bytes)
    try:
        async with asyncio.timeout(timeout_s):
            await loop.create_connection(lambda: connection, host, port)
            connection.send(hello)
            await opened
    except TimeoutError as error:
        connection.abort("no Welcome in time")
        raise ConnectionLost(f"worker at {address} did not answer within {timeout_s} s") from error
    except OSError as error:
        raise ConnectionLost(f"worker at {address} is not there: {error.strerror or error}") from error
    except asyncio.CancelledError:
        connection.abort("cancelled")
        raise
    return connection


class Mailbox:
    """An `on_message` for a caller that rather awaits than is called back: messages wait here, in order."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Any] = asyncio.Queue()

    def __call__(self, connection: Connection, message: Any) -> None:
        self._queue.put_nowait(message)

    def closed(self, connection: Connection, reason: str) -> None:
        """Use as `on_close`: whoever waits learns that nothing more comes."""
        self._queue.put_nowait(ConnectionLost(reason))

    async def next(self, *kinds: type[Message], timeout_s: float = 10.0) -> Any:
        """The next message (of these kinds; others before it are dropped).

        Raises ConnectionLost when the peer goes away or nothing suitable comes within `timeout_s`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    message = await self._queue.get()
                    if isinstance(message, ConnectionLost):
                        raise message
                    if not kinds or isinstance(message, kinds):
                        return message
        except TimeoutError as error:
            wanted = " or ".join(kind.__name__ for kind in kinds) or "message"
            raise ConnectionLost(f"no {wanted} within {timeout_s} s") from error


# --- listening side ----------------------------------------------------------------------------------------------


async def listen(
    host: str,
    port: int,
    token: str,
    on_peer: Callable[[Connection, Hello], None],
    *,
    sock: socket.socket | None = None,
    hello_timeout_s: float = HELLO_TIMEOUT_S,
    max_buffered_bytes: int = MAX_BUFFERED_BYTES,
) -> asyncio.Server:
    """Accept peers on a loopback address, or on `sock`, which `bind_loopback` made.

    `on_peer` is called once a peer has shown the token; it sets the connection's callbacks and answers Welcome. Anybody
    else is refused with a Goodbye, and so is who has sent no Hello after `hello_timeout_s`.
    """
    check_loopback(host)
    loop = asyncio.get_running_loop()

    def accept() -> Connection:
        connection = Connection(max_buffered_bytes=max_buffered_bytes)
        timer = loop.call_later(hello_timeout_s, lambda: connection.refuse(f"no Hello within {hello_timeout_s} s"))

        def first_message(connection: Connection, message: Any) -> None:
            timer.cancel()
            problem = _problem_with_hello(message, token)
            if problem:
                connection.refuse(problem)
                return
            connection.hello = message
            connection.on_message, connection.on_close = _ignore_message, _ignore_close
            on_peer(connection, message)

        connection.on_message = first_message
        connection.on_close = lambda _connection, _reason: timer.cancel()
        return connection

    if sock is not None:
        return await loop.create_server(accept, sock=sock)
    return await loop.create_server(accept, host, port)


def _problem_with_hello(message: Any, token: str) -> str:
    """Why this first message admits nobody; "" when it does."""
    if not isinstance(message, Hello):
        return f"the first message must be Hello, not {type(message).__name__}"
    if not token_matches(message.token, token):
        return "the fleet token is wrong"
    if message.protocol != PROTOCOL:
        return f"protocol {message.protocol} is not spoken here; this worker speaks {PROTOCOL}"
    if message.peer_kind not in ("gateway", "plane", "worker"):
        return f"peer_kind {message.peer_kind!r} is not one of gateway, plane, worker"
    return ""


def bind_loopback(host: str, port: int = 0) -> socket.socket:
    """Reserve an address before there is anything to serve on it: until `listen`, connecting is refused at once."""
    check_loopback(host)
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise WireError(f"address {host}:{port} cannot be listened on: {error.strerror}") from error
    return sock


def bound_address(sock: socket.socket) -> str:
    """host:port of a bound socket."""
    host, port = sock.getsockname()[:2]
    return format_address(host, port)


def bound_port(server: asyncio.Server) -> int:
    """The port that a server with port 0 was given."""
    port: int = server.sockets[0].getsockname()[1]
    return port
