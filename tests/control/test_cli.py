"""The command line: what it prints, what it asks of the plane, and what its exit codes mean."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from control import errors
from control.auth import open_auth
from control.cli.bench import benchmarks
from control.cli.commands import describe, parse_routing, plane_line
from control.cli.history import parse_duration
from control.cli.lifecycle import last_lines, masked
from control.cli.main import app
from control.cli.shell import Exit, exit_code, one_line, plain, print_table, remote, seconds
from control.errors import SettingsError
from control.snapshot import pool_status
from control.types.alerts import Alert
from control.types.api import Problem
from control.types.bottleneck import Bottleneck, EvidenceLine, Resource
from control.types.commands import Action, CommandState, PlannedStep, Preview, Verb
from control.types.events import FleetEvent
from control.types.fleet import FleetSnapshot, PlaneStatus
from control.types.latencies import Difference, Explanation, Heatmap
from control.types.requests import RecordCounts, RequestMove
from control.types.series import Series, SeriesPoint, SeriesResult
from control.types.workers import LossCause, Role
from tests.control import builders
from tests.control.plane_server import PlaneServer

DONE = builders.command(
    builders.desired(1, 3), builders.desired(2, 2), state=CommandState.DONE, result="2:2 since 14:03"
)
PREVIEW = Preview(
    base_version=1,
    steps=(
        PlannedStep(verb="flip", worker_id="w1", role=Role.PREFILL, from_role=Role.DECODE, text="flip w1 to prefill"),
    ),
    pools_before={"prefill": 1},
    pools_after={"prefill": 2},
)

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run folder with an operator's token, and nothing running."""
    monkeypatch.setenv("PHASELINE_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    open_auth(tmp_path / "run", builders.NOW)
    yield tmp_path / "run"
    remote.update(url="", token_file="")


@pytest.fixture
def phaseline(settings: Path) -> Run:
    """The command in a process of its own: with its exit code, and with stderr apart from stdout."""

    def run(*arguments: str, url: str = "") -> subprocess.CompletedProcess[str]:
        given = ["--url", url, *arguments] if url else list(arguments)
        command = [sys.executable, "-m", "control.cli.main", *given]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ))

    return run


def ask(plane: PlaneServer, *arguments: str) -> Any:
    """In this process: quicker, and enough where no error is expected."""
    result = CliRunner().invoke(app, ["--url", plane.url, *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def snapshot() -> FleetSnapshot:
    return FleetSnapshot(
        fleet_id="local",
        model_id="tiny",
        kind="ray",
        simulated=True,
        capabilities=(),
        at_unix_s=builders.NOW,
        started_unix_s=builders.NOW,
        tick=1,
        stale_s=0.25,
        health="ok",
        health_text="all workers serve",
        desired=builders.desired(1, 3),
        workers=(),
        pools=(),
        prefill=None,
        decode=None,
        traffic=builders.traffic(),
        notices=("thresholds of the local profile: not production values",),
    )


# --- input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "value_s"), [("30s", 30), ("15m", 900), ("1h", 3600), ("7d", 604800), ("2.5", 2.5)])
def test_a_duration_has_a_unit_or_is_in_seconds(text: str, value_s: float) -> None:
    assert parse_duration(text, "since") == value_s


@pytest.mark.parametrize("text", ["", "h", "-1h", "0s", "1w", "nan", "1h30m"])
def test_a_duration_that_is_none_names_the_option(text: str) -> None:
    with pytest.raises(SettingsError, match="--since"):
        parse_duration(text, "since")


def test_routing_changes_are_split_into_policy_and_weights() -> None:
    action = parse_routing(["remote_share=0.5", "min_fleet_devices=12", "weight.w1=0"])
    assert action.policy == {"remote_share": 0.5, "min_fleet_devices": 12}
    assert action.weights == {"w1": 0.0}


@pytest.mark.parametrize("change", ["remote_share", "=1", "remote_share=high", "weight.w1="])
def test_a_routing_change_that_is_no_number_is_refused_by_name(change: str) -> None:
    with pytest.raises(SettingsError, match=change.partition("=")[0] or "is not KEY=VALUE"):
        parse_routing([change])


def test_an_action_is_shown_as_it_would_be_typed() -> None:
    assert describe(Action(verb=Verb.RESIZE, prefill=2, decode=2)) == "resize prefill=2 decode=2"
    assert describe(Action(verb=Verb.SET_ROUTING, policy={"remote_share": 0.5})) == "set_routing remote_share=0.5"


def test_what_somebody_typed_is_neither_markup_nor_terminal_control(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("why",), [("[/x] [red]stop[/red] \x1b[2J\nnow",)])
    assert "[/x] [red]stop[/red]  [2J now" in capsys.readouterr().out


def test_a_password_in_a_database_url_is_masked() -> None:
    assert masked("postgresql+psycopg://me:secret@db/phaseline") == "postgresql+psycopg://me:***@db/phaseline"
    assert masked("sqlite:///a.db") == "sqlite:///a.db"


@pytest.mark.parametrize(("value", "text"), [(0.01234, "12.3 ms"), (1.5, "1.5 s"), (None, None)])
def test_times_have_three_digits_and_a_unit(value: float | None, text: str | None) -> None:
    assert seconds(value) == text


def test_the_last_lines_of_a_log_are_the_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("".join(f"line {index}\n" for index in range(1000)))
    assert last_lines(log, 2) == ["line 998", "line 999"]
    assert last_lines(log, 0) == []
    assert len(last_lines(log, 5000)) == 1000


# --- exit codes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.PlaneUnreachable("x"), Exit.UNREACHABLE),
        (errors.SettingsError("x"), Exit.BAD_INPUT),
        (errors.NotFound("x"), Exit.BAD_INPUT),
        (errors.CommandRefused("x"), Exit.REFUSED),
        (errors.StaleVersion("x"), Exit.REFUSED),
        (errors.NotAllowed("x"), Exit.REFUSED),
        (errors.FleetError("x"), Exit.FAILED),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error: errors.ControlError, code: Exit) -> None:
    assert exit_code(error) == code


def test_an_unreachable_plane_is_one_line_and_code_3(phaseline: Run) -> None:
    done = phaseline("status", url="http://127.0.0.1:9")
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.startswith("phaseline: the plane at http://127.0.0.1:9 does not answer")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("flip", "w0", "sideways"), "role 'sideways' is not one of prefill, decode, mixed"),
        (("resize",), "resize needs at least one of"),
        (("route", "set", "remote_share=x"), "remote_share: 'x' is not a number"),
        (("series", "goodput_rps", "--since", "soon"), "--since 'soon' is not a duration"),
        (("series", "goodput_rps", "--since", "1h", "--until", "2h"), "--until '2h' is not after --since"),
        (("export", "goodput_rps", "--format", "xml"), "--format 'xml' is not csv or parquet"),
        (("export", *["kv_usage"] * 21, "--out", "x.csv"), "21 metrics in one file (allowed: at most 20)"),
        (("export", "kv_usage", "--json"), "--json and the file would share standard output"),
        (("logs", "nobody"), "no log 'nobody'"),
        (("bench", "nothing"), "no benchmark 'nothing'"),
        (("sample-traffic", "maybe"), "'maybe' is not on or off"),
        (("traffic", "--limit", "-1"), "'--limit'"),
        (("traffic", "--speed", "nan"), "--speed must be above 0 and finite, got nan"),
        (("nope",), "No such command 'nope'"),
        (("flip",), "Missing argument 'worker'"),
        (("resize", "--prefil", "2"), "No such option: --prefil"),
        (("up", "--workers", "2", "--prefill", "3"), "num_prefill 3 + num_mixed 0 is above num_workers 2"),
        (("up", "--kind", "tpu"), "setting worker_kind"),
        (("up", "--traffic", "storm", "--detach"), "storm"),
        (("up", "--model", "no-such-model", "--detach"), "setting model: 'no-such-model' is neither"),
    ],
)
def test_bad_input_is_one_line_that_names_it_and_code_2(
    phaseline: Run, arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index, name in enumerate(("GATEWAY", "API", "CONSOLE", "RAY")):
        monkeypatch.setenv(f"PHASELINE_{name}_PORT", str(18590 + index))
    done = phaseline(*arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (SettingsError("--since 'soon' is no duration", value="soon"), "--since 'soon' is no duration"),
        (errors.CommandRefused("at most 1", value=2, bound="at most 1"), "at most 1 (got 2)"),
        (
            errors.NotFound("no worker is named w9", value="w9", bound="w0, w1"),
            "no worker is named w9 (allowed: w0, w1)",
        ),
        (errors.CommandRefused("12 is over the sum", value=2, bound="4"), "12 is over the sum (got 2; allowed: 4)"),
    ],
)
def test_an_error_names_value_and_bound_once(error: errors.ControlError, line: str) -> None:
    assert one_line(error) == line


def leaves(command: Any) -> Iterator[Any]:
    """Commands that do something."""
    below = getattr(command, "commands", None)
    if below is None:
        yield command
    else:
        for each in below.values():
            yield from leaves(each)


def test_every_command_has_json_and_says_what_it_does() -> None:
    found = list(leaves(get_command(app)))
    assert len(found) > 20
    assert [each.name for each in found if "--json" not in [o for p in each.params for o in p.opts]] == []
    assert [each.name for each in found if not each.help] == []


def test_every_benchmark_runs_without_arguments_and_prints_json() -> None:
    found = benchmarks()
    assert {"vs_transformers", "gateway", "handoff_vs_ray", "resize", "console"} <= set(found)
    for name, path in found.items():
        source = path.read_text()
        assert 'if __name__ == "__main__"' in source, f"{name} is a helper: its name begins with _"
        assert '"--json"' in source or "parser_of(" in source, name
        assert not re.search(r'add_argument\(\s*"[^-]', source), f"{name} has a positional argument"


def test_an_unknown_setting_in_the_environment_is_named(phaseline: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHASELINE_COLOUR", "blue")
    done = phaseline("status")
    assert (done.returncode, done.stderr) == (2, "phaseline: unknown setting PHASELINE_COLOUR in the environment\n")


def test_down_where_nothing_runs_is_no_error(phaseline: Run, settings: Path) -> None:
    done = phaseline("down")
    assert (done.returncode, done.stdout) == (0, f"nothing runs in {settings}\n")


def test_a_refusal_is_code_4_and_says_why(phaseline: Run) -> None:
    problem = Problem(
        title="Refused",
        status=422,
        detail="decode must be at least 1",
        type="urn:phaseline:CommandRefused",
        field="decode",
    )
    with PlaneServer({("POST", "/api/v1/commands"): problem}) as plane:
        done = phaseline("resize", "--decode", "0", url=plane.url)
    assert (done.returncode, done.stderr) == (4, "phaseline: decode must be at least 1\n")


# --- what is asked of the plane ---------------------------------------------------------------------------------------


def test_resize_sends_sizes_and_reason_and_prints_the_end(settings: Path) -> None:
    answers = {("POST", "/api/v1/commands"): DONE, ("GET", "/api/v1/commands/1"): DONE}
    with PlaneServer(answers) as plane:
        result = ask(plane, "resize", "--prefill", "2", "--decode", "2", "--why", "long prompts", "--wait")
    assert result.exit_code == 0
    body = plane.asked[0][2]
    assert body["action"] == {"verb": "resize", "prefill": 2, "decode": 2}
    assert body["why"] == "long prompts"
    assert result.stdout.endswith("command 1 done: 2:2 since 14:03\n")


@pytest.mark.parametrize(("state", "code"), [("done", 0), ("failed", 1), ("superseded", 1), ("running", 5)])
def test_wait_tells_by_exit_code_how_the_command_ended(settings: Path, state: str, code: int) -> None:
    command = builders.command(builders.desired(1, 3), builders.desired(2, 2), state=CommandState(state))
    with PlaneServer({("POST", "/api/v1/commands"): command, ("GET", "/api/v1/commands/1"): command}) as plane:
        assert ask(plane, "drain", "w1", "--wait", "--timeout", "0").exit_code == code


def test_a_dry_run_prints_the_steps_and_changes_nothing(settings: Path) -> None:
    with PlaneServer({("POST", "/api/v1/commands/preview"): PREVIEW}) as plane:
        result = ask(plane, "flip", "w1", "prefill", "--dry-run")
    assert (result.exit_code, result.stdout) == (0, "flip w1 to prefill\n")
    assert [path for _, path, _ in plane.asked] == ["/api/v1/commands/preview"]


def test_status_as_json_is_the_snapshot(settings: Path) -> None:
    with PlaneServer({("GET", "/api/v1/fleets/-/snapshot"): snapshot()}) as plane:
        told = ask(plane, "status", "--json")
    assert json.loads(told.stdout)["health"] == "ok"


def test_status_says_health_first_and_marks_simulation(settings: Path) -> None:
    with PlaneServer({("GET", "/api/v1/fleets/-/snapshot"): snapshot()}) as plane:
        told = ask(plane, "status").stdout.splitlines()
    assert told[0] == "fleet local, tiny (simulated): ok: all workers serve"
    assert "note: thresholds of the local profile: not production values" in told


def test_pools_of_a_fleet_that_nobody_has_listed_are_not_known_in_place_of_none(settings: Path) -> None:
    unlisted = pool_status(Role.DECODE, (), None, builders.traffic(), is_known=False)
    unseen = dataclasses.replace(snapshot(), pools=(unlisted,))
    with PlaneServer({("GET", "/api/v1/fleets/-/snapshot"): unseen}) as plane:
        told = ask(plane, "status").stdout.splitlines()
    assert told[1].startswith("pools: not known; version")


def test_the_bottleneck_is_one_sentence_then_its_numbers(settings: Path) -> None:
    lines = (
        EvidenceLine(name="prefill_busy", value=0.99, unit="fraction", provenance="measured", text="of the time"),
        EvidenceLine(name="gateway_cpu", value=None, unit="fraction", provenance="measured", text="of a core"),
    )
    found = Bottleneck(
        kind="prefill",
        resources=(Resource.PREFILL,),
        text="Prefill is the bottleneck: 99% busy",
        at_unix_s=builders.NOW,
        since_unix_s=builders.NOW - 12,
        window_s=60.0,
        gains={"prefill": 0.25},
        evidence=lines,
    )
    with PlaneServer({("GET", "/api/v1/bottleneck"): found}) as plane:
        told = ask(plane, "bottleneck").stdout.splitlines()
        assert json.loads(ask(plane, "bottleneck", "--json").stdout)["resources"] == ["prefill"]
    assert told[:2] == ["Prefill is the bottleneck: 99% busy", "for 12 s; requests of the last 60 s"]
    assert any(line.split()[:4] == ["one", "more", "prefill", "worker"] and "25.0%" in line for line in told)
    assert any(line.split()[:3] == ["gateway_cpu", "n/a", "measured"] for line in told), "unknown is not zero"


def test_a_gap_in_a_series_is_not_zero(settings: Path) -> None:
    points = (SeriesPoint(t_unix_s=0.0, value=1.5), SeriesPoint(t_unix_s=10.0, value=None))
    answer = SeriesResult(
        fleet_id="local",
        metric="goodput_rps",
        unit="rps",
        provenance="measured",
        step_s=10,
        since_unix_s=0.0,
        until_unix_s=20.0,
        by="fleet",
        series=(Series(label="fleet", points=points),),
    )
    with PlaneServer({("GET", "/api/v1/series"): answer}) as plane:
        told = ask(plane, "series", "goodput_rps", "--since", "1m", "--step", "10s").stdout
    assert "step_s=10" in plane.asked[0][1]
    assert "1.5" in told
    assert "n/a" in told


def test_an_export_is_written_as_it_came_and_summed_up(settings: Path, tmp_path: Path) -> None:
    data = b"metric,value\nkv_usage,0.5\nkv_usage,\n"
    file = tmp_path / "kv.csv"
    with PlaneServer({("GET", "/api/v1/series/export"): data}) as plane:
        told = ask(plane, "export", "kv_usage", "goodput_rps", "--step", "10s", "--out", str(file), "--json").stdout
        piped = ask(plane, "export", "kv_usage").stdout_bytes
        nowhere = CliRunner().invoke(
            app, ["--url", plane.url, "export", "kv_usage", "--out", str(tmp_path / "no" / "x")]
        )
    assert "metric=kv_usage&metric=goodput_rps" in plane.asked[0][1]
    assert file.read_bytes() == piped == data
    assert json.loads(told) == {
        "file": str(file),
        "format": "csv",
        "rows": 2,
        "bytes": len(data),
        "metrics": ["kv_usage", "goodput_rps"],
    }
    assert isinstance(nowhere.exception, SettingsError)


def test_a_series_is_shown_beside_its_earlier_window(settings: Path) -> None:
    window = {"fleet_id": "local", "metric": "goodput_rps", "unit": "rps", "provenance": "measured", "step_s": 10}
    points = (SeriesPoint(t_unix_s=0.0, value=1.5), SeriesPoint(t_unix_s=10.0, value=None))
    line = Series(label="", points=points)
    answer = SeriesResult(since_unix_s=0.0, until_unix_s=20.0, by="fleet", series=(line,), **window)  # type: ignore[arg-type]
    with PlaneServer({("GET", "/api/v1/series"): answer}) as plane:
        told = ask(plane, "series", "goodput_rps", "--since", "1m", "--compare", "1d").stdout
    assert len(plane.asked) == 2
    assert "fleet, 1d earlier" in told
    assert "mean 1.5, 1d earlier 1.5: +0 rps (+0%)" in told


def test_the_operators_token_is_sent_from_the_run_folder(settings: Path) -> None:
    with PlaneServer({("GET", "/api/v1/commands"): [{}]}) as plane:
        missing = CliRunner().invoke(app, ["--url", plane.url, "--token-file", "/nonexistent", "commands"])
    assert isinstance(missing.exception, SettingsError)
    assert plane.asked == []


def test_tokens_are_made_listed_and_revoked_without_a_plane(phaseline: Run) -> None:
    made = phaseline("token", "create", "alice", "--role", "viewer", "--json")
    assert json.loads(made.stdout)["role"] == "viewer"
    assert {"name": "alice", "role": "viewer"} in json.loads(phaseline("token", "list", "--json").stdout)
    assert phaseline("token", "revoke", "alice").stdout == "1 revoked\n"
    assert phaseline("token", "revoke", "alice").returncode == 2


def test_settings_lists_each_with_default_and_meaning(settings: Path) -> None:
    told = json.loads(CliRunner().invoke(app, ["settings", "--json"]).stdout)
    by_name = {each["name"]: each for each in told}
    assert by_name["gateway_port"]["default"] == 8000
    assert by_name["run_dir"]["value"] == str(settings)
    assert all(each["help"] for each in told)


def test_version_is_there_as_json(settings: Path) -> None:
    told = json.loads(CliRunner().invoke(app, ["version", "--json"]).stdout)
    assert set(told) >= {"phaseline", "ray"}


def test_alerts_are_listed_with_what_became_of_them(settings: Path) -> None:
    told = Alert(
        alert_id="a1",
        fleet_id="test",
        name="pool_empty",
        subject="decode",
        severity="page",
        state="firing",
        text="The decode pool has no worker",
        since_unix_s=1.0,
        seen_unix_s=2.0,
        not_told="given up after 18 tries",
    )
    with PlaneServer({("GET", "/api/v1/alerts"): [plain(told)]}) as plane:
        result = ask(plane, "alerts", "--since", "24h")
        as_json = ask(plane, "alerts", "--json")
    assert "The decode pool" in result.output
    assert "given up" in result.output
    assert json.loads(as_json.output)[0]["alert_id"] == "a1"
    assert ["since_unix_s" in path for _, path, _ in plane.asked] == [True, False]
    with PlaneServer({("GET", "/api/v1/alerts"): []}) as plane:
        assert "no alert pends or fires" in ask(plane, "alerts").output


def test_events_are_told_in_words(settings: Path) -> None:
    told = FleetEvent(fleet_id="f", kind="died", at_unix_s=builders.NOW, worker_id="w1", reason="process 7 was killed")
    with PlaneServer({("GET", "/api/v1/events"): [plain(told)]}) as plane:
        result = ask(plane, "events", "--kind", "died", "--kind", "failover", "--since", "30d")
        assert "w1 died: process 7 was killed" in result.output
        assert "kind=died&kind=failover" in plane.asked[0][1]


def test_a_request_is_told_with_its_moves(settings: Path) -> None:
    moved = builders.record(
        moves=(
            RequestMove(
                kind="failover", from_worker="w1", to_worker="w2", at_s=0.7, stall_s=0.24, cause=LossCause.DIED
            ),
        )
    )
    with PlaneServer({("GET", "/api/v1/requests/r1"): plain(moved)}) as plane:
        result = ask(plane, "request", "r1")
    assert "at 700 ms: continued on w2 after w1 died (stall 240 ms)" in result.output


def test_the_slowest_requests_are_listed_with_what_was_kept_of_all(settings: Path) -> None:
    slow = builders.record("r9", e2e_s=9.0, max_gap_s=2.0, good=False, broken=("max_gap",), kept="slow")
    with PlaneServer({REQUESTS: [plain(slow)], HEATMAP: plain(a_heatmap())}) as plane:
        result = ask(plane, "requests", "--slowest", "5", "--by", "gap", "--since", "1h", "--failed")
    asked = plane.asked[0][1]
    assert "limit=5" in asked
    assert "order=slowest" in asked
    assert "metric=gap" in asked
    assert "failed=true" in asked
    assert "no: max_gap" in result.output
    assert "1,200 requests arrived in this time; records were kept of 200: 12 slow, 188 by chance" in result.output
    assert "1,000 served are only counted" in result.output


def test_what_is_different_about_the_slow_ones_is_told_in_order(settings: Path) -> None:
    told = Explanation(
        fleet_id="f",
        asked="not good: past a bound of the SLO, refused or failed",
        since_unix_s=builders.NOW - 3600,
        until_unix_s=builders.NOW,
        num_requests=120.0,
        num_rest=4000.0,
        num_records=120,
        num_rest_records=4000,
        differences=(
            Difference(
                dimension="decode worker", value="w3", share=0.91, rest_share=0.11, num_records=109, p_value=1e-9
            ),
        ),
        note="by all records",
    )
    with PlaneServer({("GET", "/api/v1/latency-differences"): plain(told)}) as plane:
        result = ask(plane, "requests", "--explain", "--by", "ttft")
        assert json.loads(ask(plane, "requests", "--explain", "--json").output)["differences"][0]["value"] == "w3"
    assert (
        "120 requests (not good: past a bound of the SLO, refused or failed) against the other 4,000" in result.output
    )
    assert "+80.0 points" in result.output


def test_what_is_slow_must_be_a_latency(settings: Path) -> None:
    with pytest.raises(SettingsError, match="not one of e2e, ttft, gap"):
        CliRunner().invoke(app, ["requests", "--by", "moon"], catch_exceptions=False)


REQUESTS, HEATMAP = ("GET", "/api/v1/requests"), ("GET", "/api/v1/latency-heatmap")


def a_heatmap() -> Heatmap:
    return Heatmap(
        fleet_id="f",
        metric="gap",
        since_unix_s=builders.NOW - 3600,
        until_unix_s=builders.NOW,
        step_s=30,
        edges_s=(0.1, 0.2),
        columns=(0,),
        bins=(0,),
        counts=(1200.0,),
        is_estimated=False,
        bound_s=1.0,
        bound_text="SLO 1 s",
        simulated=True,
        requests=RecordCounts(num_requests=1200, kept={"slow": 12, "share": 188}, dropped={"served": 1000}),
    )


def test_the_active_plane_and_those_that_stand_by_are_one_line() -> None:
    active = PlaneStatus(pid=7, hostname="host", address="http://127.0.0.1:8080", fence=3, since_unix_s=0.0)
    assert plane_line(active, [8, 9]).startswith("plane: pid 7 on host, fence 3, since ")
    assert plane_line(active, [8, 9]).endswith("; standing by: pid 8, pid 9")
    assert plane_line(active, []).endswith("; standing by: none on this machine")


def test_a_demo_history_is_never_laid_over_a_file_that_is_there(settings: Path, phaseline: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.db").write_bytes(b"mine")
    found = phaseline("demo-history", "--out", str(tmp_path / "mine.db"))
    assert (found.returncode, found.stdout) == (Exit.BAD_INPUT, "")
    assert "mine.db is there already" in found.stderr
    assert (tmp_path / "mine.db").read_bytes() == b"mine"
