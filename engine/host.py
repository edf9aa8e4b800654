"""Which host this is, and the two rules of who may talk to a worker: loopback only, and only with the fleet's token.

Decided here: what makes two processes neighbours (they can map each other's shared memory). Not here: what a peer may
do once it is in.
"""

from __future__ import annotations

import functools
import hmac
import ipaddress
import socket
from pathlib import Path

from engine.errors import WireError

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@functools.cache
def host_id() -> str:
    """`<hostname>/<boot id>`: equal only between processes of one boot of one machine.

    Containers on one machine share the boot id but not the hostname, and not /dev/shm either.
    """
    try:
        boot = _BOOT_ID.read_text().strip()
    except OSError:
        boot = "unknown-boot"
    return f"{socket.gethostname()}/{boot}"


def token_matches(given: str, expected: str) -> bool:
    """Compare in constant time. An empty expected token matches nothing: a fleet without a secret admits nobody."""
    return bool(expected) and hmac.compare_digest(given.encode(), expected.encode())


def check_loopback(host: str) -> str:
    """Return `host` when it is a loopback address. Raises WireError naming it otherwise."""
    if host == "localhost":
        return host
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise WireError(f"host {host!r} is not a loopback address; workers listen on 127.0.0.0/8 or ::1 only")
    return host


def format_address(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(address: str) -> tuple[str, int]:
    """Inverse of `format_address`. Raises WireError naming the address when it is not host:port."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise WireError(f"address {address!r} is not host:port with a port in 1..65535")
    return host.strip("[]"), int(port)
