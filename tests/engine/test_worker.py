from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from worker_client import LIMIT_S, WorkerClient
from worker_process import paced_config, real_config

from engine.errors import WireError, WorkerConfigError
from engine.meter import MeterReader
from engine.types import Role, WorkerState
from engine.worker import WorkerHost


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "tpu"}, "kind is 'tpu', must be one of cpu, cuda, paced"),
        ({"worker_id": "a/b"}, "worker_id 'a/b' must be a file name"),
        ({"max_batch": 0}, "max_batch is 0, must be in 1..4096"),
        ({"lease_s": float("nan")}, "lease_s is nan"),
        ({"speed": 0.0}, "speed is 0.0"),
        ({"nice": 20}, "nice is 20, must be in 0..19"),
        ({"paced_model": ""}, "paced_model is empty, a paced worker needs it"),
        ({"fleet_token": ""}, "fleet_token is empty"),
        ({"handoff_transport": "rdma"}, "handoff_transport is 'rdma', must be one of auto, shm, tcp"),
    ],
)
def test_a_bad_value_names_field_value_and_bound(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(WorkerConfigError, match=message):
        paced_config(tmp_path, **changes)


def test_only_loopback_is_listened_on(tmp_path: Path) -> None:
    with pytest.raises(WireError, match="not a loopback address"):
        paced_config(tmp_path, host="0.0.0.0")


def test_a_config_can_be_carried_and_does_not_show_its_token(tmp_path: Path) -> None:
    config = paced_config(tmp_path)
    assert pickle.loads(pickle.dumps(config)) == config
    assert config.fleet_token not in repr(config)


def test_exact_is_the_default_on_a_cpu_only(tmp_path: Path) -> None:
    assert real_config(tmp_path, "m").is_exact
    assert not real_config(tmp_path, "m", kind="cuda").is_exact
    assert not real_config(tmp_path, "m", exact=False).is_exact


def test_a_host_takes_many_paced_workers_and_one_real_one(tmp_path: Path) -> None:
    with pytest.raises(WorkerConfigError, match="at least one worker"):
        WorkerHost([])
    with pytest.raises(WorkerConfigError, match="only paced workers may share a process"):
        WorkerHost([real_config(tmp_path, "m", "a"), real_config(tmp_path, "m", "b")])
    with pytest.raises(WorkerConfigError, match="worker ids must differ"):
        WorkerHost([paced_config(tmp_path), paced_config(tmp_path)])


def test_an_unknown_model_ends_the_start_with_its_error(tmp_path: Path) -> None:
    host = WorkerHost([paced_config(tmp_path, paced_model="gpt-9")])
    with pytest.raises(Exception, match="unknown model 'gpt-9'"):
        host.start()
    assert host.stop()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def host(tmp_path: Path) -> Iterator[WorkerHost]:
    host = WorkerHost([paced_config(tmp_path, name) for name in ("w-0", "w-1")])
    yield host
    assert host.stop()


async def test_each_worker_has_an_address_and_a_meter_page(host: WorkerHost, tmp_path: Path) -> None:
    addresses = host.start()
    for name, address in zip(("w-0", "w-1"), addresses, strict=True):
        reader = MeterReader(tmp_path / f"{name}.meter")
        reading = reader.read(0)
        assert (reading.address, reading.state, reading.simulated) == (address, WorkerState.UNASSIGNED, True)
        assert reading.device.name == "h100-sxm-80gb"
        client = await WorkerClient.open(address)
        assert client.connection.welcome.worker_id == name
        reader.close()


async def test_a_stopped_host_closes_its_connections_and_unlinks_its_pools(host: WorkerHost, tmp_path: Path) -> None:
    (first, _second) = host.start()
    client = await WorkerClient.open(first)
    assert names(tmp_path) == ["w-0-1.kv", "w-0.meter", "w-1-1.kv", "w-1.meter"]
    assert await asyncio.to_thread(host.stop)
    await asyncio.wait_for(client.closed, LIMIT_S)
    assert names(tmp_path) == ["w-0.meter", "w-1.meter"]
    last = MeterReader(tmp_path / "w-0.meter").read(0)
    assert (last.state, last.reason) == (WorkerState.STOPPED, "stopped in order")


async def test_a_host_ends_when_all_its_workers_were_ordered_to_stop(host: WorkerHost) -> None:
    for address in host.start():
        client = await WorkerClient.open(address, "plane")
        assert (await client.order("stop")).state is WorkerState.STOPPED
    await asyncio.wait_for(asyncio.to_thread(host.wait), LIMIT_S)


async def test_an_order_shows_as_a_status_at_every_peer(host: WorkerHost) -> None:
    address, _other = host.start()
    gateway, plane = await WorkerClient.open(address), await WorkerClient.open(address, "plane")
    result = await plane.order("place", Role.DECODE, fence=7)
    assert (result.ok, result.role, result.state) == (True, Role.DECODE, WorkerState.READY)
    for peer in (gateway, plane):
        status = await peer.status(WorkerState.READY)
        assert (status.role, status.fence) == (Role.DECODE, 7)
    refused = await plane.order("drain", fence=6)
    assert (refused.ok, refused.error) == (False, "fence 6 is older than the newest seen here, 7")
