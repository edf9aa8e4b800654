"""The doctor: what it calls broken, and that it changes nothing."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from control.doctor import Finding, examine
from control.settings import load_settings


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def findings(run_dir: Path, **settings: Any) -> dict[str, Finding]:
    ports = {"gateway_port": 18581, "api_port": 18582, "console_port": 18583, "ray_port": 18584}
    return {each.check: each for each in examine(load_settings(run_dir=run_dir, **(ports | settings)))}


def test_a_used_port_is_broken_and_named_by_its_setting(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        found = findings(tmp_path, api_port=taken.getsockname()[1])
    assert found["api_port"].level == "broken"
    assert found["gateway_port"].level == "ok"


def test_a_model_that_is_nowhere_is_broken(tmp_path: Path) -> None:
    assert findings(tmp_path, model="no-such-model")["model"].level == "broken"


def test_a_cluster_that_does_not_answer_is_broken(tmp_path: Path) -> None:
    assert findings(tmp_path, ray_address="127.0.0.1:9")["ray"].level == "broken"
    assert findings(tmp_path, ray_address="nonsense")["ray"].level == "broken"


def test_more_pools_than_shared_memory_is_broken(tmp_path: Path) -> None:
    assert findings(tmp_path, kv_bytes_per_worker=2**50)["shared memory"].level == "broken"


def test_simulated_fleets_need_no_pools(tmp_path: Path) -> None:
    assert findings(tmp_path, worker_kind="paced", num_workers=1000)["shared memory"].level == "ok"


def test_looking_leaves_nothing_behind(tmp_path: Path) -> None:
    examine(load_settings(run_dir=tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []
