"""The supervisor with small scripts in place of the real components."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from control.components import Component, components, endpoints
from control.deployment import (
    AlreadyRunning,
    ComponentRecord,
    DeploymentState,
    clear_shared_memory,
    end_all,
    only_supervisor,
    read_state,
    write_state,
)
from control.errors import SettingsError
from control.ports import check_ports, ports_to_check
from control.processes import ProcessId, identify, send_signal, tree_of
from control.runner import backoff_s
from control.settings import load_settings
from control.supervisor import StartFailed, Supervisor, end_leftovers, pause_file, records_for

RUN = "import time; time.sleep(600)"
CHILD = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {RUN!r}]).wait()"


class Rig:
    """A supervisor in a thread of its own, over scripts."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.lines: list[str] = []
        self.seen: set[ProcessId] = set()
        self.supervisor: Supervisor | None = None
        self.thread: threading.Thread | None = None

    def component(self, name: str, code: str = RUN, **other: object) -> Component:
        fields: dict[str, object] = {
            "name": name,
            "command": (sys.executable, "-c", code),
            "environment": {},
            "cwd": self.run_dir,
            "log": self.run_dir / f"{name}.log",
            "stop_limit_s": 5.0,
        }
        return Component(**(fields | other))  # type: ignore[arg-type]

    def start(self, *parts: Component) -> Supervisor:
        me = identify(os.getpid())
        assert me is not None
        state = DeploymentState(supervisor=me, phase="starting", started_unix_s=0.0, settings={})
        previous = read_state(self.run_dir)
        state.components.update(records_for(parts, previous))
        if previous is not None:
            end_leftovers(previous, state.components, self.lines.append)
        self.supervisor = Supervisor(self.run_dir, parts, state, self.lines.append)
        self.supervisor.start_all()
        self.note()
        self.thread = threading.Thread(target=self.supervisor.watch)
        self.thread.start()
        return self.supervisor

    def note(self) -> None:
        assert self.supervisor is not None
        for record in self.supervisor.state.components.values():
            self.seen.update(record.processes)

    def root(self, name: str) -> ProcessId:
        assert self.supervisor is not None
        self.note()
        found = self.supervisor.state.components[name].root
        assert found is not None
        return found

    def root_or(self, before: ProcessId, name: str = "") -> ProcessId:
        """The root now; `before` while there is none."""
        assert self.supervisor is not None
        records = self.supervisor.state.components
        record = records[name] if name else next(iter(records.values()))
        return record.root if record.root is not None and record.is_ready else before

    def abandon(self) -> None:
        """As if the supervisor had been killed: nobody watches any more, everything runs on."""
        assert self.supervisor is not None
        self.supervisor.stop.set()
        if self.thread is not None:
            self.thread.join()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + 20.0
        while not condition():
            assert time.monotonic() < deadline_s, f"{what}: {self.lines}"
            time.sleep(0.02)
        self.note()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    if made.supervisor is not None:
        made.note()
        made.abandon()
    for root in made.seen:
        for each in tree_of(root):
            send_signal(each, signal.SIGKILL)


@pytest.mark.parametrize(("exits", "wait_s"), [(1, 0.5), (2, 1.0), (3, 2.0), (7, 30.0), (50, 30.0)])
def test_restarts_wait_twice_as_long_each_time_up_to_a_bound(exits: int, wait_s: float) -> None:
    assert backoff_s(exits) == wait_s


def test_a_component_that_dies_is_started_again(rig: Rig) -> None:
    rig.start(rig.component("plane"))
    first = rig.root("plane")
    send_signal(first, signal.SIGKILL)
    rig.until(lambda: rig.root_or(first) != first, "restart")
    record = rig.supervisor.state.components["plane"]  # type: ignore[union-attr]
    assert record.num_restarts == 1
    assert record.last_exit == "killed by SIGKILL"
    assert any("plane ended (killed by SIGKILL)" in line for line in rig.lines)


def test_a_component_that_stands_still_is_killed_and_started_again_where_it_has_a_limit(rig: Rig) -> None:
    rig.start(rig.component("plane", stopped_limit_s=0.1), rig.component("console"))
    plane, console = rig.root("plane"), rig.root("console")
    for each in (plane, console):
        send_signal(each, signal.SIGSTOP)
    rig.until(lambda: rig.root_or(plane, "plane") != plane, "restart")
    assert any("plane has stood still (stopped) for 0.1 s: killed" in line for line in rig.lines)
    assert rig.root("console") == console
    send_signal(console, signal.SIGCONT)


def test_a_component_starts_only_once_what_it_needs_is_ready(rig: Rig) -> None:
    rig.start(rig.component("gateway", needs=("plane",)), rig.component("plane"))
    ready = [line.split()[0] for line in rig.lines if " ready " in line]
    assert ready == ["plane", "gateway"]


def test_what_falls_with_a_component_is_restarted_after_it(rig: Rig) -> None:
    rig.start(rig.component("ray"), rig.component("plane", needs=("ray",), falls_with="ray"))
    ray, plane = rig.root("ray"), rig.root("plane")
    send_signal(ray, signal.SIGKILL)
    rig.until(lambda: rig.root_or(ray) != ray and rig.root_or(plane, "plane") != plane, "both restarted")
    assert not plane.is_alive


def test_children_of_a_dead_root_are_ended_before_it_is_restarted(rig: Rig) -> None:
    rig.start(rig.component("ray", CHILD))
    rig.until(lambda: len(tree_of(rig.root("ray"))) == 2, "child")
    root, child = tree_of(rig.root("ray"))
    rig.seen.add(child)
    record = rig.supervisor.state.components["ray"]  # type: ignore[union-attr]
    rig.until(lambda: child in record.processes, "the child is recorded")
    send_signal(root, signal.SIGKILL)
    rig.until(lambda: not child.is_alive, "the orphan is ended")


def test_a_root_that_runs_on_without_its_working_child_is_started_anew(rig: Rig) -> None:
    code = "import subprocess, time; subprocess.Popen(['sleep', '600']); time.sleep(600)"
    supervisor = rig.start(rig.component("ray", code, lives_by="sleep"))
    first = rig.root("ray")
    rig.until(lambda: supervisor.runners[0].vital is not None, "the child")
    vital = supervisor.runners[0].vital
    assert vital is not None
    send_signal(vital, signal.SIGKILL)
    rig.until(lambda: rig.root_or(first) != first, "another root")
    assert not first.is_alive
    assert any("ray ended (its sleep ended)" in line for line in rig.lines)


def test_a_component_is_replaced_beside_the_one_that_runs(rig: Rig) -> None:
    supervisor = rig.start(rig.component("gateway"))
    first, runner = rig.root("gateway"), supervisor.runners[0]
    rig.abandon()
    old = supervisor.set_aside(runner)
    supervisor.stop.clear()
    rig.until(lambda: supervisor.tick(time.monotonic()) or runner.record.is_ready, "the new one")
    assert first.is_alive
    assert runner.pid not in (0, first.pid)
    assert old.name == f"gateway-old-{first.pid}"
    assert set(read_state(rig.run_dir).components) == {"gateway", old.name}  # type: ignore[union-attr]
    new = rig.root("gateway")
    supervisor.bring_back(runner, old)
    assert (first.is_alive, new.is_alive, runner.pid) == (True, False, first.pid)


def test_an_upgrade_takes_over_what_runs_with_whatever_command(rig: Rig) -> None:
    rig.start(rig.component("plane"))
    first = rig.root("plane")
    rig.abandon()
    other = rig.component("plane", RUN + " # other code")
    records = records_for([other], read_state(rig.run_dir), takes_all=True)
    assert records["plane"].root == first
    assert records["plane"].digest != other.digest


def test_a_start_that_keeps_failing_names_the_component_and_quotes_its_log(rig: Rig) -> None:
    code = "import sys; print('no such database'); sys.exit(3)"
    silent = rig.component("plane", code, ready_url="http://127.0.0.1:9/")  # nobody answers on port 9
    with pytest.raises(StartFailed, match=r"plane does not start \(exit code 3\): no such database"):
        rig.start(silent)


def test_a_paused_component_is_ended_and_comes_back(rig: Rig) -> None:
    supervisor = rig.start(rig.component("traffic"))
    first = rig.root("traffic")
    pause_file(rig.run_dir, "traffic").touch()
    rig.until(lambda: not first.is_alive, "paused")
    pause_file(rig.run_dir, "traffic").unlink()
    record = supervisor.state.components["traffic"]
    rig.until(lambda: record.root is not None and record.root.is_alive, "resumed")


def test_a_new_supervisor_takes_over_what_runs_unchanged(rig: Rig) -> None:
    part = rig.component("plane")
    rig.start(part)
    first = rig.root("plane")
    rig.abandon()
    assert first.is_alive
    rig.start(part)
    assert rig.root("plane") == first


def test_a_new_supervisor_ends_what_runs_with_another_command(rig: Rig) -> None:
    rig.start(rig.component("plane"))
    first = rig.root("plane")
    rig.abandon()
    rig.start(rig.component("plane", RUN + " # other settings"))
    assert not first.is_alive
    assert rig.root("plane") != first


def test_everything_is_ended_in_order_by_recorded_ids(rig: Rig) -> None:
    supervisor = rig.start(*(rig.component(name) for name in ("ray", "plane", "gateway", "traffic")))
    roots = [rig.root(name) for name in ("ray", "plane", "gateway", "traffic")]
    rig.abandon()
    rig.lines.clear()
    supervisor.end()
    ended = [line.split()[0] for line in rig.lines if line.endswith(" ended")]
    assert ended == ["traffic", "gateway", "plane", "ray"]
    assert not any(each.is_alive for each in roots)
    assert supervisor.state.phase == "stopped"


def test_a_recorded_pid_that_was_reused_is_left_alone(tmp_path: Path) -> None:
    me = identify(os.getpid())
    assert me is not None
    reused = ProcessId(me.pid, me.started_unix_s - 1e6)
    record = ComponentRecord(name="plane", processes=[reused], stop_limit_s=0.1)
    state = DeploymentState(
        supervisor=reused, phase="ready", started_unix_s=0.0, settings={}, components={"plane": record}
    )
    lines: list[str] = []
    end_all(state, lines.append, lambda: None, lambda: None)
    assert lines == []
    assert me.is_alive


def test_the_state_file_survives_a_round_trip(tmp_path: Path) -> None:
    record = ComponentRecord(name="plane", digest="d", processes=[ProcessId(2, 3.5)], num_restarts=1, is_ready=True)
    state = DeploymentState(
        supervisor=ProcessId(1, 2.0),
        phase="ready",
        started_unix_s=1.0,
        settings={"api_port": 1},
        components={"plane": record},
    )
    write_state(tmp_path, state)
    assert read_state(tmp_path) == state
    assert read_state(tmp_path / "elsewhere") is None


def test_a_state_file_that_is_not_ours_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "supervisor.json").write_text("{}")
    with pytest.raises(SettingsError, match=r"supervisor\.json cannot be read"):
        read_state(tmp_path)


def test_one_run_folder_has_one_supervisor(tmp_path: Path) -> None:
    with (
        only_supervisor(tmp_path),
        pytest.raises(AlreadyRunning, match="already running in"),
        only_supervisor(tmp_path),
    ):
        pass
    with only_supervisor(tmp_path):
        pass


def test_clearing_shared_memory_removes_only_our_files(tmp_path: Path) -> None:
    for name in ("w0.meter", "w0-1.kv", "host.life.json", "somebody.txt"):
        (tmp_path / name).touch()
    clear_shared_memory(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["somebody.txt"]


def test_a_port_in_use_names_port_and_setting() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"setting api_port: port {port} is in use"):
            check_ports([("127.0.0.1", "api_port", port)])


def test_two_settings_with_one_port_are_refused() -> None:
    with pytest.raises(SettingsError, match="gateway_port and api_port name the same port 18599"):
        check_ports([("127.0.0.1", "gateway_port", 18599), ("127.0.0.1", "api_port", 18599)])


def test_ports_of_running_components_are_not_checked() -> None:
    settings = load_settings(run_dir=Path("/nonexistent"))
    kept = {"plane": ComponentRecord(name="plane", processes=[ProcessId(1, 1.0)])}
    rows = ports_to_check(endpoints(settings), settings.host, settings.ray_port, kept)
    assert [setting for _, setting, _ in rows] == ["gateway_port", "console_port", "ray_port"]


def test_the_parts_of_a_deployment_follow_from_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def names(traffic: str = "", **settings: object) -> list[str]:
        return [each.name for each in components(load_settings(run_dir=tmp_path, **settings), traffic)]

    assert names(ray_redis="off") == ["ray", "ray-node", "plane", "gateway", "console"]
    assert names("gentle", ray_redis="off")[-1] == "traffic"
    assert names(ray_redis="redis://h:1", num_gateways=3)[3:6] == ["gateway", "gateway-1", "gateway-2"]
    assert names(ray_address="10.0.0.1:6379") == ["plane", "gateway", "console"]
    assert names(fleet_kind="sim") == ["plane", "console"]
    assert names(fleet_kind="sim", num_planes=3) == ["plane", "plane-1", "plane-2", "console"]
    with pytest.raises(SettingsError, match="sample traffic needs a gateway"):
        names("gentle", fleet_kind="sim")


def test_the_head_listens_on_loopback_and_needs_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    head, node = components(load_settings(run_dir=tmp_path, ray_redis="off"))[:2]
    assert "--node-ip-address=127.0.0.1" in head.command
    assert "--node-ip-address=127.0.0.1" in node.command
    assert "--include-dashboard=false" in head.command
    assert head.environment["RAY_AUTH_MODE"] == "token"
    assert Path(head.environment["RAY_AUTH_TOKEN_PATH"]).stat().st_mode & 0o777 == 0o600
