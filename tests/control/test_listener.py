"""The gateways' listening socket: what waits in it outlives whoever holds it, and it comes back from a gateway."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest

from control.errors import SettingsError
from control.listener import (
    LISTEN_FD,
    Channel,
    GatewayStatus,
    ask_gateway,
    bind_listener,
    inherited_listener,
    reclaim_listener,
)

STATUS = GatewayStatus(problem="no worker takes requests", num_in_flight=3, is_stopping=False)


@pytest.fixture
async def channel() -> AsyncIterator[tuple[Channel, int]]:
    """A gateway's channel in this process, and the port of its listening socket."""
    with bind_listener("127.0.0.1", 0) as listener:
        made = Channel(listener, lambda: STATUS)
        made.open()
        yield made, listener.getsockname()[1]
        made.close()


async def test_a_gateway_says_its_status_and_gives_its_socket_back(channel: tuple[Channel, int]) -> None:
    found = await asyncio.to_thread(ask_gateway, os.getpid())
    assert found is not None
    status, copy = found
    with copy:
        assert status == STATUS
        assert copy.getsockname()[1] == channel[1]


async def test_a_connection_that_waited_is_accepted_by_whoever_got_the_socket_back(
    channel: tuple[Channel, int],
) -> None:
    with socket.create_connection(("127.0.0.1", channel[1])) as client:
        copy = await asyncio.to_thread(reclaim_listener, os.getpid(), channel[1])
        assert copy is not None
        with copy, copy.accept()[0] as accepted:
            assert accepted.getpeername() == client.getsockname()


async def test_a_gateway_that_stops_gives_its_socket_to_nobody(channel: tuple[Channel, int]) -> None:
    channel[0].stop_listening()
    assert await asyncio.to_thread(ask_gateway, os.getpid()) is None


def test_a_process_without_a_channel_does_not_answer() -> None:
    assert ask_gateway(1) is None


def test_the_socket_of_a_gateway_without_a_channel_is_copied_where_the_system_allows_it() -> None:
    code = (
        "import socket, time; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen();"
        "print(s.getsockname()[1], flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            port = int(holder.stdout.readline())
            copy = reclaim_listener(holder.pid, port)
        finally:
            holder.kill()
    if copy is None:  # Yama or a container's filter: then the port is free once its holder has ended
        bind_listener("127.0.0.1", port).close()
        return
    with copy:
        assert copy.getsockname()[1] == port
        socket.create_connection(("127.0.0.1", port)).close()


def test_the_inherited_socket_is_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with bind_listener("127.0.0.1", 0) as listener:
        monkeypatch.setenv(LISTEN_FD, str(os.dup(listener.fileno())))
        inherited = inherited_listener()
        assert inherited is not None
        with inherited:
            assert inherited.getsockname() == listener.getsockname()
            assert not inherited.get_inheritable()
    assert inherited_listener() is None


def test_a_port_that_is_taken_is_named() -> None:
    with bind_listener("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"127.0.0.1:{port} cannot be used: Address already in use"):
            bind_listener("127.0.0.1", port)
