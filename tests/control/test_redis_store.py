"""What Ray's head remembers its workers by: which Redis, where, and when it is forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest

from control.components import components
from control.errors import SettingsError
from control.fleets.ray_head import temp_dir_of
from control.fleets.redis_store import config_path, forget_cluster, redis_dir, redis_store
from control.settings import load_settings


def test_without_redis_there_is_no_store(tmp_path: Path) -> None:
    assert redis_store(load_settings(run_dir=tmp_path, ray_redis="off")) is None


def test_a_redis_of_somebody_is_used_and_not_started(tmp_path: Path) -> None:
    store = redis_store(load_settings(run_dir=tmp_path, ray_redis="redis://:secret@10.0.0.1:6379"))
    assert store is not None
    assert (store.address, store.password, store.command) == ("10.0.0.1:6379", "secret", ())


@pytest.mark.parametrize("wanted", ["yes", "http://h:1", "redis://h", "redis://:secret@h:port"])
def test_what_is_no_redis_url_is_refused_and_the_password_not_repeated(tmp_path: Path, wanted: str) -> None:
    with pytest.raises(SettingsError, match="setting ray_redis") as refused:
        redis_store(load_settings(run_dir=tmp_path, ray_redis=wanted))
    assert "secret" not in str(refused.value)


def test_with_a_store_the_head_may_fall_alone_and_without_one_the_node_falls_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def node_falls_with(ray_redis: str) -> str:
        parts = components(load_settings(run_dir=tmp_path, ray_redis=ray_redis))
        return next(each.falls_with for each in parts if each.name == "ray-node")

    assert node_falls_with("off") == "ray"
    assert node_falls_with("redis://h:1") == ""


def test_the_port_of_a_cluster_that_runs_is_found_again(tmp_path: Path) -> None:
    path = config_path(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text("bind 127.0.0.1\nport 4711\n")
    store = redis_store(load_settings(run_dir=tmp_path))
    assert store is None or store.port == 4711  # None: no redis-server on this machine


def test_a_new_cluster_begins_without_what_an_earlier_one_left(tmp_path: Path) -> None:
    session = temp_dir_of(tmp_path) / "session_2026"
    for folder in (redis_dir(tmp_path), session):
        folder.mkdir(parents=True)
    forget_cluster(tmp_path)
    assert not redis_dir(tmp_path).exists()
    assert not session.exists()
