"""The gateways' one listening socket: made by the supervisor, inherited by every gateway, given back when asked for.

All gateways of a host accept from the same socket, so a connection that waits in its queue is lost with none of them:
it is there as long as one process holds the socket. A supervisor that starts anew gets it back from a living gateway,
over the gateway's own channel, or, from one of a release that has none, by `pidfd_getfd` where the system allows that.
The channel also says what the shared address cannot: whether *this* gateway is ready.

Decided here: how the socket travels, and that only processes of the same user get it. Not here: who starts a gateway
(`control.supervisor`), what ready means (`control.gateway.app`).
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Final

import psutil

from control.errors import SettingsError

#: Names the inherited descriptor in a gateway's environment.
LISTEN_FD = "PHASELINE_LISTEN_FD"
#: What the kernel keeps of one connection that reads slowly; beyond it the gateway holds back.
SEND_BUFFER_BYTES: Final = 256 * 1024
#: A connection whose client takes nothing for so long is ended by the kernel, with all that is kept for it.
UNREAD_LIMIT_MS: Final = 60_000
BACKLOG = 1024
ASK_TIMEOUT_S = 1.0
_MAX_STATUS_BYTES = 4096
_PIDFD_GETFD = 438  # the number of the system call, the same on every architecture


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayStatus:
    """What one gateway says about itself."""

    problem: str  # why it is not ready; "" when it is
    num_in_flight: int
    is_stopping: bool


def bind_listener(host: str, port: int) -> socket.socket:
    """A new socket that listens. Raises SettingsError when the port cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)  # connections inherit both
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_LIMIT_MS)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"setting gateway_port: {host}:{port} cannot be used: {error.strerror}", field="gateway_port", value=port
        ) from error
    return listener


def inherited_listener() -> socket.socket | None:
    """The socket that the supervisor has passed on; None for a gateway that was started by hand."""
    number = os.environ.pop(LISTEN_FD, "")
    if not number:
        return None
    listener = socket.socket(fileno=int(number))
    listener.set_inheritable(False)
    return listener


def reclaim_listener(pid: int, port: int) -> socket.socket | None:
    """The socket on `port` that a living gateway holds; None when it does not give it."""
    found = ask_gateway(pid)
    if found is not None:
        return found[1]
    with suppress(OSError, psutil.Error):
        held = psutil.Process(pid).net_connections(kind="tcp")
        number = next((each.fd for each in held if each.status == "LISTEN" and each.laddr.port == port), None)
        return None if number is None else _copy_descriptor(pid, number)
    return None


def ask_gateway(pid: int) -> tuple[GatewayStatus, socket.socket] | None:
    """What the gateway with this pid says, and a copy of its listening socket. None when it does not answer."""
    with suppress(OSError, ValueError, TypeError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(ASK_TIMEOUT_S)
        channel.connect(_channel_name(pid))
        if _peer_of(channel)[0] != pid:  # somebody else has taken the name
            return None
        payload, numbers, _, _ = socket.recv_fds(channel, _MAX_STATUS_BYTES, 1)
        return GatewayStatus(**json.loads(payload)), socket.socket(fileno=numbers[0])
    return None


class Channel:
    """A gateway's end: whoever of the same user connects gets its status and a copy of the listening socket."""

    def __init__(self, listener: socket.socket, status: Callable[[], GatewayStatus]) -> None:
        self._listener = listener.dup()
        self._status = status
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.setblocking(False)
        self._server.bind(_channel_name(os.getpid()))
        self._server.listen(8)

    def open(self) -> None:
        asyncio.get_running_loop().add_reader(self._server, self._answer)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._server)
        self._server.close()
        self.stop_listening()

    def stop_listening(self) -> None:
        """Let go of the socket: what connects from now on is for the others."""
        self._listener.close()

    def _answer(self) -> None:
        with suppress(OSError):
            peer, _ = self._server.accept()
            with peer:
                if _peer_of(peer)[1] == os.getuid() and self._listener.fileno() >= 0:
                    payload = json.dumps(asdict(self._status())).encode()
                    socket.send_fds(peer, [payload], [self._listener.fileno()])


def _channel_name(pid: int) -> str:
    """In the abstract namespace: nothing is left on a disk by a gateway that was killed."""
    return f"\0phaseline-gateway-{pid}"


def _peer_of(channel: socket.socket) -> tuple[int, int]:
    """(pid, uid) at the other end, by the kernel's word."""
    raw = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", raw)
    return pid, uid


def _copy_descriptor(pid: int, number: int) -> socket.socket:
    """Raises OSError where the system does not allow it (another user, Yama, a container's filter)."""
    handle = os.pidfd_open(pid)
    try:
        copy = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, handle, number, 0)
    finally:
        os.close(handle)
    if copy < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return socket.socket(fileno=copy)
