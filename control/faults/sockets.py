"""Shuts down a TCP connection of another process of ours, as a network that drops it would end it. Linux only.

The socket is borrowed with pidfd_getfd(2) and shut down; the other process sees the end of its connection and keeps its
file descriptor. Needs the right to trace that process (the same user, and no ptrace restriction).
"""

from __future__ import annotations

import ctypes
import os
import socket
from collections import defaultdict
from typing import Final

import psutil

from control.errors import CommandRefused
from control.processes import ProcessId
from engine.host import format_address

_PIDFD_GETFD: Final = 438  # the same number on every architecture


def connections(owner: ProcessId) -> dict[str, list[int]]:
    """Established TCP connections of a process: host:port of the other side -> file descriptors."""
    process, found = owner.find(), defaultdict(list)
    for each in [] if process is None else process.net_connections(kind="tcp"):
        if each.raddr and each.status == psutil.CONN_ESTABLISHED:
            found[format_address(each.raddr.ip, each.raddr.port)].append(each.fd)
    return found


def drop_connection(owner: ProcessId, address: str) -> int:
    """Shut down every connection of `owner` to `address` (host:port); how many. Raises CommandRefused for none."""
    numbers = connections(owner).get(address, [])
    if not numbers:
        raise CommandRefused(f"process {owner.pid} has no connection to {address}", field="address", value=address)
    for number in numbers:
        _shut_down(owner.pid, number)
    return len(numbers)


def _shut_down(pid: int, number: int) -> None:
    """Raises CommandRefused when the system does not lend us the socket."""
    process = os.pidfd_open(pid)
    try:
        borrowed = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, process, number, 0)
        if borrowed < 0:
            reason = os.strerror(ctypes.get_errno())
            raise CommandRefused(
                f"socket {number} of process {pid} cannot be borrowed: {reason}", field="pid", value=pid
            )
        with socket.socket(fileno=borrowed) as lent:
            lent.shutdown(socket.SHUT_RDWR)
    finally:
        os.close(process)
