"""How targets are written, and what is said of those that cannot be used."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from control.errors import CommandRefused
from control.fleets.attached.targets import FileTargets, ListedTargets, Target, parse_target, read_targets
from control.types.workers import Role


def test_a_target_is_a_role_and_an_address():
    assert parse_target("prefill=http://10.0.0.1:8000") == Target(
        worker_id="10.0.0.1:8000", url="http://10.0.0.1:8000/metrics", role=Role.PREFILL
    )
    named = parse_target("decode:d0=https://engine.example/vllm/metrics/")
    assert (named.worker_id, named.url, named.role) == ("d0", "https://engine.example/vllm/metrics", Role.DECODE)
    assert parse_target("mixed=10.0.0.1:8000").url == "http://10.0.0.1:8000/metrics"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("http://10.0.0.1:8000", "a target is ROLE=URL"),
        ("leader=http://10.0.0.1:8000", "no role is named 'leader'"),
        ("prefill=ftp://10.0.0.1:8000", "is not the http address of an engine"),
        ("prefill=http://10.0.0.1", "names no port: http://10.0.0.1:8000, say"),
        ("prefill=http://", "is not the http address of an engine"),
        ("prefill=http://10.0.0.1:port", "is not a URL"),
        ("prefill=http://user:secret@10.0.0.1:8000", "holds a password"),
        ("prefill:a b=http://10.0.0.1:8000", "is no name for a worker"),
    ],
)
def test_a_target_that_cannot_be_used_says_why(text: str, words: str):
    with pytest.raises(CommandRefused, match=words) as caught:
        parse_target(text)
    assert "secret" not in str(caught.value)


def test_two_targets_of_one_name_or_one_page_are_refused():
    with pytest.raises(CommandRefused, match=r"two targets are named 10\.0\.0\.1:8000"):
        ListedTargets([parse_target("prefill=10.0.0.1:8000"), parse_target("decode=10.0.0.1:8000")])
    with pytest.raises(CommandRefused, match=r"p0 and d0 are one page, http://10\.0\.0\.1:8000/metrics: its work"):
        ListedTargets([parse_target("prefill:p0=10.0.0.1:8000"), parse_target("decode:d0=http://10.0.0.1:8000/")])
    with pytest.raises(CommandRefused, match="0 targets"):
        ListedTargets([])


def written(path: Path, *groups: dict[str, object]) -> Path:
    path.write_text(json.dumps(groups))
    os.utime(path, ns=(path.stat().st_mtime_ns + 1, path.stat().st_mtime_ns + 1))
    return path


def test_a_watched_file_is_followed_and_one_that_breaks_changes_nothing(tmp_path: Path):
    group = {"targets": ["10.0.0.1:8000"], "labels": {"role": "prefill", "worker_id": "p0"}}
    path = written(tmp_path / "targets.json", group)
    source = FileTargets(path)
    assert [(each.worker_id, each.role) for each in source.targets()] == [("p0", Role.PREFILL)]
    written(path, {**group, "labels": {"role": "decode", "worker_id": "p0"}})
    assert [each.role for each in source.targets()] == [Role.DECODE]
    path.write_text("[{")
    assert [each.role for each in source.targets()] == [Role.DECODE]
    assert "cannot be read" in source.problem
    assert "the targets before stay" in source.problem
    written(path, group)
    assert [each.role for each in source.targets()] == [Role.PREFILL]
    assert source.problem == ""
    path.unlink()
    assert [each.role for each in source.targets()] == [Role.PREFILL]


def test_a_file_of_something_else_is_refused(tmp_path: Path):
    for text, words in (('{"a": 1}', "not a list"), ('[{"targets": "x"}]', "a group is"), ("", "cannot be read")):
        (tmp_path / "t.json").write_text(text)
        with pytest.raises(CommandRefused, match=words):
            read_targets(tmp_path / "t.json")
