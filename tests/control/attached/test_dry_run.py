"""What `attach --dry-run`, and the API behind it, say of engines that are not there."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from control.attached_planes import AttachedPlanes
from control.cli.main import app
from control.cli.shell import Exit, exit_code, one_line
from control.errors import ControlError
from control.lease import Holder
from tests.control.plane_server import PlaneServer
from tests.control.rig import Rig

SILENT = "no engine answers: are the addresses right, and can they be reached from the host that asks?"


HOLDER = Holder(holder_id="plane", hostname="here", machine="here", pid=1, started_unix_s=1.0, address="")


@pytest.fixture
def nobody() -> str:
    """An address of this host at which nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{found.getsockname()[1]}"


def dry_run(run_dir: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[Exit, str]:
    """From this host, as no plane runs: exit code, and what is printed."""
    monkeypatch.setenv("PHASELINE_RUN_DIR", str(run_dir))
    result = CliRunner().invoke(app, ["attach", "prod", *words, "--dry-run"])
    if isinstance(result.exception, ControlError):
        return exit_code(result.exception), one_line(result.exception)
    return Exit(result.exit_code), result.output


def test_engines_that_do_not_answer_are_named_and_the_exit_code_is_1(
    nobody: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = ("--targets", f"prefill:p0={nobody}", "--targets", f"decode:d0={nobody}/metrics/d0")
    code, told = dry_run(tmp_path, monkeypatch, "--kind", "vllm", *targets)
    assert code == Exit.FAILED
    assert all(told.count(f"{nobody}{path} cannot be read") == 1 for path in ("/metrics", "/metrics/d0"))
    assert told.splitlines()[-2:] == [f"- {SILENT}", "0 of 2 engines answer"]  # and nothing of models or devices


@pytest.mark.parametrize(
    ("kind", "controller", "answer", "line"),
    [
        (
            "vllm",
            "prometheus={url}?query=up",
            ("/api/v1/query", {"status": "success", "data": {"resultType": "vector", "result": []}}),
            "- prometheus lists no engine: look at the query that should find them",
        ),
        (
            "sglang",
            "sglang-router={url}",
            ("/workers", {"workers": []}),
            "- sglang-router lists no engine: look at what it was told of them",
        ),
    ],
)
def test_a_list_without_engines_is_one_line_and_exit_code_1(
    kind: str,
    controller: str,
    answer: tuple[str, object],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, found = answer
    with PlaneServer({("GET", path): found}) as server:
        told = dry_run(tmp_path, monkeypatch, "--kind", kind, "--controller", controller.format(url=server.url))
    assert told == (Exit.FAILED, f"{line}\n")


def test_a_controller_that_does_not_answer_is_one_line_and_exit_code_1(
    nobody: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--kind", "sglang", "--controller", f"sglang-router={nobody}")
    code, told = dry_run(tmp_path, monkeypatch, *words)
    assert (code, told) == (Exit.FAILED, f"{nobody}/workers cannot be reached: All connection attempts failed")


def test_a_file_without_targets_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "targets.json"
    path.write_text("[]")
    told = dry_run(tmp_path, monkeypatch, "--kind", "vllm", "--targets-file", str(path))
    assert told == (Exit.REFUSED, f"0 targets in {path} (allowed: 1..2000)")


async def test_the_api_answers_with_a_report_in_which_each_engine_says_why(nobody: str, tmp_path: Path) -> None:
    rig = await Rig(tmp_path).start()
    planes = AttachedPlanes(rig.plane.settings, rig.history, {}, HOLDER, lambda: rig.history)
    body = {"name": "prod", "kind": "vllm", "targets": [f"prefill:p0={nobody}"]}
    transport = httpx.ASGITransport(app=rig.app(attached=lambda: planes))
    headers = {"Authorization": f"Bearer {rig.token('operator')}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://plane", headers=headers) as client:
        answer = await client.post("/api/v1/attached/survey", json=body)
        empty = await client.post("/api/v1/attached/survey", json=body | {"targets": []})
        misspelt = await client.post("/api/v1/attached/survey", json=body | {"devices_per_workers": 8})
    assert answer.status_code == 200  # the looking went well
    told = answer.json()
    assert [(each["worker_id"], each["role"], each["num_found"]) for each in told["engines"]] == [("p0", "prefill", 0)]
    assert told["engines"][0]["problem"] == f"{nobody}/metrics cannot be read: All connection attempts failed"
    assert told["notes"] == [SILENT]
    assert (empty.status_code, empty.json()["field"]) == (422, "targets")
    assert (misspelt.status_code, misspelt.json()["field"]) == (422, "devices_per_workers")
