"""A connection of another process is shut down from outside; its own socket stays, and its others are untouched."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from control.errors import CommandRefused
from control.faults.sockets import connections, drop_connection
from control.processes import ProcessId, identify

pytestmark = pytest.mark.integration

PEER = """
import socket, sys
first, second = (socket.create_connection(("127.0.0.1", int(port))) for port in sys.argv[1:])
print("connected", flush=True)
print("ended" if first.recv(1) == b"" else "data", flush=True)
second.sendall(b"still here")
sys.stdin.read()
"""


@contextlib.contextmanager
def connected() -> Iterator[tuple[ProcessId, subprocess.Popen[str], list[socket.socket]]]:
    """A process with two connections to us."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        ports = [str(each.getsockname()[1]) for each in listeners]
        command = [sys.executable, "-c", PEER, *ports]
        peer = stack.enter_context(subprocess.Popen(command, stdin=-1, stdout=-1, text=True))
        ours = [stack.enter_context(each.accept()[0]) for each in listeners]
        assert peer.stdout is not None
        assert peer.stdout.readline() == "connected\n"
        owner = identify(peer.pid)
        assert owner is not None
        try:
            yield owner, peer, ours
        finally:
            peer.communicate(timeout=10)


def test_a_dropped_connection_ends_for_both_sides_and_the_other_one_goes_on() -> None:
    with connected() as (owner, peer, (dropped, kept)):
        address = f"127.0.0.1:{dropped.getsockname()[1]}"
        assert drop_connection(owner, address) == 1
        assert peer.stdout is not None
        assert peer.stdout.readline() == "ended\n"
        assert dropped.recv(1) == b""
        assert kept.recv(100) == b"still here"


def test_a_connection_that_is_not_there_is_refused() -> None:
    with connected() as (owner, _peer, (dropped, _kept)):
        assert len(connections(owner)) == 2
        with pytest.raises(CommandRefused, match=r"has no connection to 127\.0\.0\.1:1"):
            drop_connection(owner, "127.0.0.1:1")
        assert drop_connection(owner, f"127.0.0.1:{dropped.getsockname()[1]}") == 1
