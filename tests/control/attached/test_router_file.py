"""The router's own file: who has which role by it, and edits that leave all the rest as somebody wrote it."""

from __future__ import annotations

import difflib
import json
from dataclasses import replace

import pytest

from control.errors import FleetError
from control.fleets.attached.steering.router_file import Backend, RouterFile, edited, read_router_file
from control.types.workers import Role
from tests.control.attached.fake_stack_router import YAML

JSON = json.dumps(
    {
        "service_discovery": "static",
        "routing_logic": "roundrobin",
        "static_backends": "http://10.0.0.1:8000,http://10.0.0.2:8000",
        "static_models": "tiny,tiny",
        "static_model_labels": "p,d",
        "prefill_model_labels": "p",
        "decode_model_labels": "d",
        "session_key": "x-user",
    },
    indent=2,
)


def changed_lines(before: str, after: str) -> list[str]:
    found = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    return [line for line in found if line[:1] in "+-" and line[:3] not in ("+++", "---")]


def roles(file: RouterFile) -> dict[str, Role]:
    return {each.worker_id: file.role(each) for each in file.backends}


@pytest.mark.parametrize(("text", "is_json"), [(YAML, False), (JSON, True)])
def test_a_label_says_the_role(text: str, is_json: bool) -> None:
    file = read_router_file(text, is_json=is_json)
    assert roles(file)["10.0.0.1:8000"] is Role.PREFILL
    assert roles(file)["10.0.0.2:8000"] is Role.DECODE
    assert file.backends[0].model == "tiny"


def test_without_labels_all_are_mixed() -> None:
    text = "".join(line for line in YAML.splitlines(keepends=True) if "labels" not in line)
    assert set(roles(read_router_file(text, is_json=False)).values()) == {Role.MIXED}


def test_a_changed_role_changes_one_line() -> None:
    file = read_router_file(YAML, is_json=False)
    first, *others = file.backends
    after = edited(file, [replace(first, label="decode"), *others])
    assert changed_lines(YAML, after.text) == [
        '-static_model_labels: "prefill,decode,decode"',
        '+static_model_labels: "decode,decode,decode"',
    ]


def test_a_backend_that_goes_takes_its_line_and_its_label_and_comes_back_at_the_end() -> None:
    file = read_router_file(YAML, is_json=False)
    first, second, third = file.backends
    without = edited(file, [first, third])
    assert changed_lines(YAML, without.text) == [
        '-static_model_labels: "prefill,decode,decode"',
        '+static_model_labels: "prefill,decode"',
        "-      - http://10.0.0.2:8000",
    ]
    again = edited(without, [first, third, second])
    assert (
        again.text.index("10.0.0.3")
        < again.text.index("      - http://10.0.0.2:8000\n")
        < again.text.index("model_type")
    )
    assert roles(again) == roles(file)


def test_lists_in_one_line_are_edited_too() -> None:
    text = YAML[: YAML.index("    static_backends")] + '    static_backends: ["http://a:1", "http://b:1"]\n'
    file = read_router_file(text.replace("prefill,decode,decode", "prefill,decode"), is_json=False)
    assert '    static_backends: ["http://a:1"]\n' in edited(file, file.backends[:1]).text


def test_json_keeps_its_order_and_all_other_keys() -> None:
    file = read_router_file(JSON, is_json=True)
    after = edited(file, [replace(file.backends[0], label="d"), file.backends[1]])
    assert changed_lines(JSON, after.text) == ['-  "static_model_labels": "p,d",', '+  "static_model_labels": "d,d",']


def test_what_cannot_be_edited_without_touching_the_rest_is_refused() -> None:
    text = YAML.replace("  tiny:", "  other: &all\n    static_backends: [http://10.0.0.9:1]\n  tiny:").replace(
        '"prefill,decode,decode"', '"decode,prefill,decode,decode"'
    )
    file = read_router_file(text, is_json=False)
    with pytest.raises(FleetError, match="other would have no backend"):
        edited(file, file.backends[1:])
    shared = "labels: &l decode,decode\n" + YAML.replace('"prefill,decode,decode"', "*l").replace(
        '      - "http://10.0.0.3:8000"   # rack 8\n', ""
    )
    one = read_router_file(shared, is_json=False)
    with pytest.raises(FleetError, match="keep the rest"):
        edited(one, [replace(one.backends[0], label="prefill"), one.backends[1]])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("static\n", "k8s\n"), "no service_discovery: static"),
        (("prefill,decode,decode", "prefill"), "1 static_model_labels for 3 backends"),
        (("http://10.0.0.2", "ftp://10.0.0.2"), "is not the address of a backend"),
        (("http://10.0.0.2", "http://10.0.0.1"), "each address once"),
        (("static_models:\n", "static_models: tiny\nother:\n"), "no table of models"),
        (("callbacks: null", "callbacks: ["), "cannot be read"),
    ],
)
def test_a_file_that_the_router_cannot_use_says_why(changes: tuple[str, str], words: str) -> None:
    with pytest.raises(FleetError, match=words):
        read_router_file(YAML.replace(*changes), is_json=False)


def test_a_role_without_a_label_is_refused() -> None:
    file = read_router_file(YAML, is_json=False)
    with pytest.raises(FleetError, match="no label for mixed"):
        file.label(Role.MIXED)
    assert Backend(url="http://a:1", model="m").worker_id == "a:1"
