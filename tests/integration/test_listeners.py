"""Nothing listens beyond loopback: not ours, not Ray's, not Streamlit's."""

from __future__ import annotations

import contextlib
import ipaddress

import httpx
import psutil
import pytest

from tests.integration.deployment import Deployment

pytestmark = pytest.mark.integration


def listeners(deployment: Deployment) -> dict[tuple[str, int], str]:
    """(address, port) -> process name, over every process of the deployment; UDP sockets that are bound count too."""
    found = {}
    for each in deployment.processes():
        process = each.find()
        if process is None:
            continue
        with contextlib.suppress(psutil.NoSuchProcess):
            for one in process.net_connections(kind="inet"):
                if one.status == psutil.CONN_LISTEN or (one.type == 2 and one.laddr and not one.raddr):
                    found[(one.laddr.ip, one.laddr.port)] = process.name()
    return found


def is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback


def test_every_listening_socket_is_on_loopback(paced: Deployment) -> None:
    found = listeners(paced)
    outside = {f"{name} on {address}:{port}" for (address, port), name in found.items() if not is_loopback(address)}
    assert not outside
    assert {port for _, port in found} >= set(paced.ports.values())


def test_nothing_can_be_read_or_changed_without_a_token(paced: Deployment) -> None:
    api = f"http://127.0.0.1:{paced.ports['API']}/api/v1"
    assert httpx.get(f"{api}/fleets/-/snapshot", timeout=10.0).status_code == 401
    body = {"action": {"verb": "resize", "prefill": 1, "decode": 1}}
    assert httpx.post(f"{api}/commands", json=body, timeout=10.0).status_code == 401


def test_secrets_are_readable_by_their_owner_alone(paced: Deployment) -> None:
    secrets = [each for each in (paced.run_dir / "secrets").iterdir() if each.is_file()]
    assert {"fleet_token", "operator_token", "ray_token"} <= {each.name for each in secrets}
    assert {each.stat().st_mode & 0o077 for each in secrets} == {0}
