"""Debian's Prometheus reads a real plane and a real gateway: rules fire on made faults, its dashboard is drawn."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from control.gateway.null_worker import NullConfig
from engine.text import ModelText
from engine.types import Role
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

    def __init__(self, folder: Path, targets: dict[str, str], token: str) -> None:
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        rules = yaml.safe_load(RULES.read_text())
        for rule in (rule for group in rules["groups"] for rule in group["rules"] if "for" in rule):
            rule["for"] = "1s"
        (folder / "rules.yml").write_text(yaml.safe_dump(rules))
        jobs = [
            {"job_name": name, "authorization": {"credentials": token}, "static_configs": [{"targets": [address]}]}
            for name, address in targets.items()
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
        try:
            answer = httpx.get(f"{self.url}/api/v1/{path}", params=params, trust_env=False).json()
        except httpx.TransportError:
            return None
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, text: str) -> list[Any]:
        found = self.ask("query", query=text)
        return found["result"] if found else []

    def firing(self) -> set[str]:
        found = self.ask("alerts")
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


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> ModelText:
    return load_text(tmp_path_factory.mktemp("model"))


async def test_rules_fire_on_made_faults_and_each_query_of_the_dashboard_answers(
    tmp_path: Path, text: ModelText
) -> None:
    planes = Planes(tmp_path)
    plane = planes.start(SLO=NEVER_GOOD, SLO_LEAST_REQUESTS="1")  # the first fault: no request is good
    server: Prometheus | None = None
    answer = tuple(text.encode("Paris."))
    workers = [NullConfig(worker_id=name, role=role, tokens=answer) for name, role in ROLES.items()]
    try:
        planes.until_active(plane)
        async with house(text, workers) as place:
            for _ in range(3):
                assert (await place.chat()).status_code == 200
            await place.client.post("/v1/chat/completions", json=chat_body(), headers={"traceparent": TRACED})
            token = (tmp_path / "secrets" / "operator_token").read_text().strip()
            gateway = place.url.removeprefix("http://")
            targets = {"phaseline-plane": f"127.0.0.1:{planes.port}", "phaseline-gateway": gateway}
            server = Prometheus(tmp_path, targets, token)
            await asyncio.to_thread(_look, server)
            with planes.client() as client:
                own = {each.name for each in client.alerts() if each.state == "firing"}
            assert "slo_burn_fast" in own
            plane.kill()  # the second fault
            await asyncio.to_thread(server.until, lambda: "PhaselinePlaneDown" in server.firing(), server.firing)
    finally:
        planes.end()
        if server is not None:
            server.process.terminate()
            server.process.wait()


def _look(server: Prometheus) -> None:
    """Both pages are scraped, the alert fires, and every panel has a value."""
    server.until(lambda: len(server.query("up == 1")) == 2, lambda: server.query("up"))
    server.until(lambda: "PhaselineErrorBudgetBurnsFast" in server.firing(), server.firing)

    def silent() -> list[tuple[str, str]]:
        return [(panel, text) for panel, text in dashboard_queries(60) if not server.query(text)]

    server.until(lambda: not silent(), silent)
    exemplars = server.ask("query_exemplars", query=TIMED, start="0", end="1e11")
    assert exemplars[0]["exemplars"][0]["labels"]["trace_id"] in TRACED
    own = 'phaseline_alerts{name="slo_burn_fast", state="firing"} == 1'
    server.until(lambda: server.query(own), lambda: server.query("phaseline_alerts"))
