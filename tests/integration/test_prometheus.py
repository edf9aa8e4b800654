"""Debian's Prometheus reads a real plane and a real gateway: rules fire on made faults, its dashboard is drawn."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from control.fleets.attached.types import Attachment
from control.gateway.null_worker import NullConfig
from engine.text import ModelText
from engine.types import Role
from tests.control.attached.fake_engines import FakeEngine, engines
from tests.control.attached.pages_of import text_of
from tests.control.gateway.gateway_builders import chat_body, house, load_text
from tests.integration.deployment import ROOT, free_ports
from tests.integration.test_standby import Planes

RULES = ROOT / "data" / "prometheus" / "phaseline.rules.yml"
DASHBOARD = ROOT / "data" / "grafana" / "phaseline.json"
LIMIT_S = 90.0
ROLES = {"p0": Role.PREFILL, "d0": Role.DECODE}
pytestmark = pytest.mark.integration
TRACED = f"00-{'ab' * 16}-{'cd' * 8}-01"
TIMED = "phaseline_gateway_time_to_first_token_seconds_bucket"
#: A delivery is given up after 53 minutes, and dropped when 256 wait: its rule is tested by promtool alone.
NEEDS_AN_HOUR = {"PhaselineAlertsUndelivered"}
NEVER_GOOD = json.dumps({"ttft_base_s": 1e-6, "ttft_per_token_s": 0.0, "tpot_s": 1e-6, "max_gap_s": 1e-6})


def promtool(*arguments: str) -> str:
    found = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def test_the_shipped_rules_and_configuration_are_valid_and_do_what_their_tests_say(tmp_path: Path) -> None:
    assert "SUCCESS" in promtool("check", "rules", str(RULES))
    assert "SUCCESS" in promtool("test", "rules", str(RULES.with_name("phaseline.rules.test.yml")))
    for name in ("prometheus.yml", RULES.name):
        (tmp_path / name).write_text(RULES.with_name(name).read_text())
    (tmp_path / "prometheus.token").write_text("x")
    assert "SUCCESS" in promtool("check", "config", str(tmp_path / "prometheus.yml"))


class Prometheus:
    """One server of the test's own, that scrapes and evaluates each second; the rules' waits are a second too."""

    def __init__(self, folder: Path, targets: dict[str, tuple[str, str]]) -> None:
        """`targets`: by job, an address and the token that it wants."""
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        rules = yaml.safe_load(RULES.read_text())
        for rule in (rule for group in rules["groups"] for rule in group["rules"] if "for" in rule):
            rule["for"] = "1s"
        (folder / "rules.yml").write_text(yaml.safe_dump(rules))
        jobs = [
            {"job_name": name, "authorization": {"credentials": token}, "static_configs": [{"targets": [address]}]}
            for name, (address, token) in targets.items()
        ]
        every = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        config = {"global": every, "rule_files": ["rules.yml"], "scrape_configs": jobs}
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._log = folder / "prometheus.log"
        command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
        command += [f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage"]
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def ask(self, path: str, **params: str) -> Any:
        """None while it starts."""
        try:
            answered = httpx.get(f"{self.url}/api/v1/{path}", params=params, trust_env=False)
        except httpx.TransportError:
            return None
        if answered.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            return None
        answer = answered.json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, text: str) -> list[Any]:
        found = self.ask("query", query=text)
        return found["result"] if found else []

    def firing(self) -> set[str]:
        found = self.ask("alerts") or {"alerts": []}
        return {each["labels"]["alertname"] for each in found["alerts"] if each["state"] == "firing"}

    def until(self, is_so: Callable[[], Any], what: Callable[[], object]) -> None:
        deadline_s = time.monotonic() + LIMIT_S
        while not is_so():
            assert time.monotonic() < deadline_s, f"{what()}\n{self._log.read_text()[-1500:]}"
            time.sleep(0.2)


def dashboard_queries(range_s: int) -> Iterator[tuple[str, str]]:
    """(panel, query) of all panels, with the variables that Grafana fills in."""
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            text = target["expr"].replace("$__rate_interval", f"{range_s}s").replace("$fleet", ".+")
            assert "$" not in text, text
            yield panel["title"], text


def annotation_query() -> str:
    """Where Grafana draws a takeover."""
    (found,) = json.loads(DASHBOARD.read_text())["annotations"]["list"]
    return str(found["expr"]).replace("$fleet", ".+")


def alert_names() -> Iterator[str]:
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        yield from (rule["alert"] for rule in group["rules"] if "alert" in rule)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> ModelText:
    return load_text(tmp_path_factory.mktemp("model"))


async def test_each_rule_fires_on_a_made_fault_and_each_query_of_the_dashboard_answers(
    tmp_path: Path, text: ModelText
) -> None:
    """The faults, one after the other: no request is good and the webhook's receiver is away; a plane whose next look
    is ten minutes off; an attached engine ends; the plane is killed; its successor's history is locked; that one dies.
    """
    answer = tuple(text.encode("Paris."))
    workers = [NullConfig(worker_id=name, role=role, tokens=answer) for name, role in ROLES.items()]
    engine = FakeEngine(text_of("decode-1"))
    scene = Scene(tmp_path, engine)
    try:
        scene.start_planes()
        async with house(text, workers) as place, engines(engine):
            for _ in range(3):
                assert (await place.chat()).status_code == 200
            await place.client.post("/v1/chat/completions", json=chat_body(), headers={"traceparent": TRACED})
            await asyncio.to_thread(scene.play, place.url.removeprefix("http://"))
    finally:
        scene.end()


class Scene:
    """Planes with SimFleet, an attached fleet of one engine, and a Prometheus that looks at all of it."""

    def __init__(self, folder: Path, engine: FakeEngine) -> None:
        self.engine, self.folder = engine, folder
        self.planes, self.blind = Planes(folder / "acts"), Planes(folder / "looks_no_more")
        self.server: Prometheus | None = None
        self.fired: set[str] = set()

    def start_planes(self) -> None:
        for each in (self.planes, self.blind):
            each.run_dir.mkdir()
        (away,) = free_ports(1)
        secret = self.folder / "webhook_secret"
        secret.write_text("secret")
        told = {"ALERT_WEBHOOK_URL": f"http://127.0.0.1:{away}/", "ALERT_WEBHOOK_SECRET": f"file:{secret}"}
        self.settings = {"SLO": NEVER_GOOD, "SLO_LEAST_REQUESTS": "1", **told}
        self.first = self.planes.start(**self.settings)
        self.blind.start(FLEET_ID="blind", TICK_S="600")
        self.planes.until_active(self.first)

    def play(self, gateway: str) -> None:
        """Each fault is made when what came before it has been told."""
        attached = Attachment(name="theirs", kind="vllm", targets=(f"decode:d0={self.engine.url}",), every_s=0.5)
        with self.planes.client() as client:
            client.attach(attached)
        token = (self.planes.run_dir / "secrets" / "operator_token").read_text().strip()
        blind_token = (self.blind.run_dir / "secrets" / "operator_token").read_text().strip()
        targets = {
            "phaseline-plane": (f"127.0.0.1:{self.planes.port}", token),
            "phaseline-gateway": (gateway, token),
            "phaseline-blind-plane": (f"127.0.0.1:{self.blind.port}", blind_token),
        }
        server = self.server = Prometheus(self.folder, targets)
        server.until(lambda: len(server.query("up == 1")) == len(targets), lambda: server.query("up"))
        self._until_fired("PhaselineErrorBudgetBurnsFast", "PhaselineErrorBudgetBurnsSlowly", "PhaselineWebhookSilent")
        self._until_all_is_drawn(server)
        server.until(lambda: server.query('phaseline_worker_up{worker="d0"} == 1'), lambda: server.query("up"))
        self.engine.fault = "error"
        self._until_fired("PhaselineWorkerDead", "PhaselinePoolEmpty")
        second = self.planes.start(**self.settings)
        self.planes.until_said(second, f"pid {self.first.pid}")
        self.first.kill()
        self._until_fired("PhaselinePlaneTookOver")
        assert server.query(annotation_query())
        with sqlite3.connect(self.planes.run_dir / "history.db", isolation_level=None) as holder:
            holder.execute("BEGIN IMMEDIATE")
            self._until_fired("PhaselineHistoryAway", "PhaselineTicksStopped")
        second.kill()
        self._until_fired("PhaselinePlaneDown")
        assert self.fired == set(alert_names()) - NEEDS_AN_HOUR

    def _until_fired(self, *names: str) -> None:
        """All that fires meanwhile is remembered."""
        server = self.server
        assert server is not None

        def is_told() -> bool:
            self.fired |= server.firing()
            return self.fired.issuperset(names)

        server.until(is_told, lambda: (names, server.firing()))

    def _until_all_is_drawn(self, server: Prometheus) -> None:
        """Every panel has a value, the choice of fleets too, and the plane's own alert fires."""

        def silent() -> list[tuple[str, str]]:
            return [(panel, text) for panel, text in dashboard_queries(60) if not server.query(text)]

        server.until(lambda: not silent(), silent)
        fleets = server.ask("label/fleet/values", **{"match[]": "phaseline_fleet_info"})
        assert set(fleets) == {"local", "theirs", "blind"}
        exemplars = server.ask("query_exemplars", query=TIMED, start="0", end="1e11")
        assert exemplars[0]["exemplars"][0]["labels"]["trace_id"] in TRACED
        own = 'phaseline_alerts{name="slo_burn_fast", state="firing"} == 1'
        server.until(lambda: server.query(own), lambda: server.query("phaseline_alerts"))

    def end(self) -> None:
        self.planes.end()
        self.blind.end()
        if self.server is not None:
            self.server.process.terminate()
            self.server.process.wait()
