"""Calls of Ray that need no cluster to be judged; the rest is in tests/integration/test_ray_fleet.py."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from control.fleets import ray_fleet
from control.settings import load_settings


def test_a_second_attempt_to_connect_lets_the_first_one_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ray refuses to be joined twice: a start that failed half-way would fail for ever."""
    calls: list[str] = []
    fake = SimpleNamespace(
        is_initialized=lambda: calls[-1:] == ["init"],
        shutdown=lambda: calls.append("shutdown"),
        init=lambda **_: calls.append("init"),
    )
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(ray_fleet, "accepts_connections", lambda *_, **__: True)
    monkeypatch.setattr(ray_fleet, "ray_environment", lambda _: {})
    settings = load_settings(run_dir=tmp_path)
    ray_fleet.connect(settings)
    ray_fleet.connect(settings)
    assert calls == ["init", "shutdown", "init"]


async def test_a_node_that_leaves_while_the_nodes_are_read_is_a_problem_and_no_error(tmp_path: Path) -> None:
    fleet = ray_fleet.create(load_settings(run_dir=tmp_path))
    assert await fleet._read_node("0123456789") == "node 01234567 has left the cluster"
