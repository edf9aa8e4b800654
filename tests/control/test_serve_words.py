"""Wrong input at `serve`, `allow` and `forbid`: refused in one line that says what would be right."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from control.auth import open_auth
from control.cli.main import app
from control.cli.shell import Exit, exit_code, one_line, plain
from control.deployment import DeploymentState, make_run_dir, write_state
from control.errors import ControlError
from control.fleets.attached.bridge_file import BridgeFile, bridge_path, write_bridge
from control.fleets.attached.types import AttachedInfo, Attachment, Permission
from control.processes import identify
from control.served import Served, all_served, read_served, remove_served, served_path, write_served
from control.types.fleet import Capability
from tests.control.plane_server import PlaneServer

sys.path.insert(0, str(Path(__file__).parent / "gateway"))
from gateway_builders import write_model_folder


def info(name: str, kind: str, *capabilities: Capability) -> AttachedInfo:
    told = Attachment(name=name, kind=kind, targets=("mixed=http://127.0.0.1:1",))
    given = tuple(Permission(capability=each, who="ann", at_unix_s=1.0) for each in capabilities)
    return AttachedInfo(attachment=told, who="ann", at_unix_s=1.0, allowed=given)


ATTACHED = [info("open", "vllm", Capability.ROUTE), info("shut", "vllm"), info("seen", "ray-serve", Capability.ROUTE)]


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run folder with a supervisor (this process), and a plane with three fleets: one that may be routed."""
    folder = tmp_path / "run"
    monkeypatch.setenv("PHASELINE_RUN_DIR", str(folder))
    make_run_dir(folder)
    open_auth(folder, 1.0)
    me = identify(os.getpid())
    assert me is not None
    with PlaneServer({("GET", "/api/v1/attached"): [plain(each) for each in ATTACHED]}) as plane:
        host, _, port = plane.url.removeprefix("http://").partition(":")
        where = {"host": host, "api_port": int(port)}
        write_state(folder, DeploymentState(supervisor=me, phase="ready", started_unix_s=1.0, settings=where))
        yield folder


def refused(*words: str) -> tuple[Exit, str]:
    """Exit code, and the line that is printed."""
    result = CliRunner().invoke(app, list(words))
    if isinstance(result.exception, ControlError):
        return exit_code(result.exception), one_line(result.exception)
    return Exit(result.exit_code), " ".join(result.output.split())


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    return str(write_model_folder(tmp_path / "model"))


def test_serve_without_a_tokenizer_says_what_it_needs(run_dir: Path) -> None:
    assert refused("serve", "open") == (
        Exit.BAD_INPUT,
        "serve needs --tokenizer, a folder with the model's tokenizer.json",
    )


@pytest.mark.parametrize("port", ["0", "-1", "70000", "http"])
def test_serve_takes_a_port_that_exists(run_dir: Path, tokenizer: str, port: str) -> None:
    code, line = refused("serve", "open", "--tokenizer", tokenizer, "--port", port)
    assert (code, "--port" in line) == (Exit.BAD_INPUT, True)


@pytest.mark.parametrize("how", [(), ("--detach",)])
def test_serve_names_who_has_the_port(run_dir: Path, tokenizer: str, how: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, line = refused("serve", "open", "--tokenizer", tokenizer, "--port", str(port), *how)
    assert code == Exit.BAD_INPUT
    assert line.startswith(f"setting port: port {port} is in use by ")
    assert all_served(run_dir) == ()


@pytest.mark.parametrize("how", [(), ("--detach",)])
def test_serve_names_the_file_that_a_folder_lacks(run_dir: Path, tmp_path: Path, how: tuple[str, ...]) -> None:
    code, line = refused("serve", "open", "--tokenizer", str(tmp_path / "nowhere"), *how)
    assert (code, "nowhere" in line and "tokenizer.json" in line) == (Exit.BAD_INPUT, True)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "tokenizer.json").write_text("{")
    code, line = refused("serve", "open", "--tokenizer", str(tmp_path / "half"), *how)
    assert (code, "half" in line and "tokenizer.json" in line) == (Exit.BAD_INPUT, True)


@pytest.mark.parametrize("how", [(), ("--detach",)])
def test_serve_names_the_fleets_that_there_are(run_dir: Path, tokenizer: str, how: tuple[str, ...]) -> None:
    code, line = refused("serve", "other", "--tokenizer", tokenizer, *how)
    assert (code, line) == (Exit.BAD_INPUT, "no attached fleet is named other (allowed: open, shut, seen)")


@pytest.mark.parametrize("how", [(), ("--detach",)])
def test_serve_says_how_to_allow_it(run_dir: Path, tokenizer: str, how: tuple[str, ...]) -> None:
    code, line = refused("serve", "shut", "--tokenizer", tokenizer, *how)
    assert (code, "`phaseline allow shut route` lets us" in line) == (Exit.REFUSED, True)


@pytest.mark.parametrize("how", [(), ("--detach",)])
def test_serve_names_the_kinds_that_it_can(run_dir: Path, tokenizer: str, how: tuple[str, ...]) -> None:
    code, line = refused("serve", "seen", "--tokenizer", tokenizer, "--port", "1", *how)
    assert (code, "kind ray-serve" in line and "vllm" in line) == (Exit.REFUSED, True)


def test_a_fleet_that_is_served_on_another_port_is_not_moved(run_dir: Path, tokenizer: str) -> None:
    write_served(run_dir, Served(fleet="open", tokenizer=tokenizer, port=9))
    code, line = refused("serve", "open", "--tokenizer", tokenizer, "--port", "10", "--detach")
    assert (code, "on port 9" in line and "--stop" in line) == (Exit.REFUSED, True)


@pytest.mark.parametrize(("is_kept", "how"), [(True, "`phaseline serve open --stop` ends it"), (False, "--detach")])
def test_a_second_serve_is_refused_before_it_says_that_it_serves(
    run_dir: Path, tokenizer: str, is_kept: bool, how: str
) -> None:
    me = identify(os.getpid())
    assert me is not None
    path = bridge_path(run_dir, "open")
    path.parent.mkdir(parents=True)
    write_bridge(path, BridgeFile(me.pid, me.started_unix_s, [], "http://127.0.0.1:9"))
    if is_kept:
        write_served(run_dir, Served(fleet="open", tokenizer=tokenizer, port=9))
    code, line = refused("serve", "open", "--tokenizer", tokenizer, "--port", "1")
    assert (code, line.startswith("process "), how in line) == (Exit.REFUSED, True, True)


def test_stop_of_what_is_not_served_says_so(run_dir: Path) -> None:
    code, line = refused("serve", "open", "--stop")
    assert (code, "no fleet open is served" in line) == (Exit.BAD_INPUT, True)


def test_a_name_that_is_a_path_names_no_fleet_and_no_file(run_dir: Path) -> None:
    (run_dir / "kept.json").write_text("{}")
    code, line = refused("serve", "../kept", "--stop")
    assert (code, "no fleet is named '../kept'" in line) == (Exit.BAD_INPUT, True)
    assert (run_dir / "kept.json").exists()


def test_detach_without_a_supervisor_says_what_starts_one(run_dir: Path, tokenizer: str) -> None:
    (run_dir / "supervisor.json").unlink()
    for words in (("--tokenizer", tokenizer, "--detach"), ("--stop",)):
        code, line = refused("serve", "open", *words)
        assert (code, "`phaseline up --detach` starts it" in line) == (Exit.UNREACHABLE, True)


def test_a_capability_that_does_not_exist_is_refused_with_those_that_do(run_dir: Path) -> None:
    for verb in ("allow", "forbid"):
        code, line = refused(verb, "open", "fly")
        assert (code, "'fly'" in line and "'route'" in line) == (Exit.BAD_INPUT, True)


def test_what_is_to_be_served_is_a_file_and_one_that_is_broken_is_as_none(tmp_path: Path) -> None:
    served = Served(fleet="open", tokenizer="/m", port=9)
    write_served(tmp_path, served)
    assert all_served(tmp_path) == (served,)
    served_path(tmp_path, "broken").write_text("{")
    assert all_served(tmp_path) == (served,)
    assert remove_served(tmp_path, "open")
    assert not remove_served(tmp_path, "open")
    assert read_served(tmp_path, "open") is None
